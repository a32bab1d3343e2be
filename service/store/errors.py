"""What can go wrong with any stored work: an order that is repeated, a lease that is lost."""

from service.errors import DarkroomError


class KeyReused(DarkroomError):
    """An idempotency key came a second time, with another body."""

    def __init__(self, key: str) -> None:
        # Kept keys begin with their owner's name, which is not what the caller said.
        said = key.partition("/")[2] or key
        super().__init__(f"Idempotency-Key '{said[:80]}' was used with another body before; choose a new one")
        self.key = key


class LeaseLost(DarkroomError):
    """Another process has the work, or it has ended: this one's write was refused."""

    def __init__(self, work_id: str) -> None:
        super().__init__(f"'{work_id}' is no longer this process's to change; it must stop")
        self.work_id = work_id
