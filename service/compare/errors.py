"""What can go wrong with a comparison."""

from service.errors import DarkroomError


class ComparisonNotFound(DarkroomError):
    """No comparison has that id (any more)."""

    def __init__(self, comparison_id: str) -> None:
        super().__init__(
            f"comparison '{comparison_id[:80]}' was not found; list the runs to see which there are"
        )
        self.comparison_id = comparison_id


class CompareFileNotFound(DarkroomError):
    """The comparison has no file of that name, or no picture in that cell, (yet)."""

    def __init__(self, comparison_id: str, name: str) -> None:
        super().__init__(
            f"comparison '{comparison_id}' has no file '{name[:120]}'; its `files` name those that it has, and "
            "those of its `cells` that are done have a picture"
        )
        self.comparison_id, self.name = comparison_id, name
