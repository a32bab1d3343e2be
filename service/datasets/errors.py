"""What can go wrong with datasets, as types with facts."""

from collections.abc import Sequence

from darkroom.types.datasets import DatasetFault
from service.errors import DarkroomError


class InvalidArchive(DarkroomError):
    """An upload that cannot be taken apart safely, or not at all. Nothing of it is kept.

    `code` tells causes apart for programs: `archive.unknown`, `archive.corrupt`, `archive.bomb`, `member.link`, …
    """

    def __init__(self, code: str, message: str, *, file: str = "") -> None:
        super().__init__(f"{file!r} {message}" if file else message)
        self.code, self.file = code, file


class InvalidDataset(DarkroomError):
    """Pictures or captions that cannot be used. `faults` has all of them; nothing was kept."""

    def __init__(self, faults: Sequence[DatasetFault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(
            f"{faults[0].file!r} {faults[0].message}{more}; "
            "mend the files, or leave such members out with `invalid=skip`"
        )
        self.faults = tuple(faults)


class EmptyDataset(DarkroomError):
    """No picture is left to learn from."""

    def __init__(self, faults: Sequence[DatasetFault] = ()) -> None:
        why = f"; the first of {len(faults)} faults: {faults[0].file!r} {faults[0].message}" if faults else ""
        super().__init__(f"the dataset has no picture that could be used{why}")
        self.faults = tuple(faults)


class DatasetTooLarge(DarkroomError):
    """More bytes than one dataset may have."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"{what} has more than {limit_bytes} bytes; split the dataset")


class DatasetNotFound(DarkroomError):
    """No dataset has that id, or it was deleted."""

    def __init__(self, id: str) -> None:
        super().__init__(f"there is no dataset {id[:80]!r}; GET /v1/datasets lists those that are there")


class PictureNotFound(DarkroomError):
    """A dataset without the picture that is asked for."""

    def __init__(self, id: str, which: int | str, count: int) -> None:
        super().__init__(
            f"dataset {id[:19]}… has no picture {which!r}; it has {count}, numbered from 0 to {count - 1}"
        )
