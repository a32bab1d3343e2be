"""What is resident, moved into the host's memory while somebody else has the device.

Tensors stay the objects that they are: only their storages are emptied, and filled again. So views, groups of layers
and compiled code need not know of it, and the bits that come back are those that went.
"""

from collections.abc import Iterable

import torch


class Lent:
    """Storages that wait in the host's memory. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._waiting: list[tuple[torch.UntypedStorage, torch.Tensor]] = []

    @classmethod
    def moved_out(cls, tensors: Iterable[torch.Tensor]) -> "Lent":
        """The storages of these tensors, each once; those of files that are mapped into memory stay.

        Raises what torch raises where the host's memory does not do; everything is where it was then.
        """
        lent = cls()
        try:
            for tensor in tensors:
                lent._move_out(tensor.untyped_storage())
        except BaseException:
            lent.come_back()
            raise
        return lent

    def come_back(self) -> None:
        """Everything is on the device again.

        Raises:
            torch.OutOfMemoryError: there is no room for all; what is still out waits for the next try.
        """
        while self._waiting:
            storage, host = self._waiting[-1]
            storage.resize_(host.nbytes)
            _bytes_of(storage).copy_(host)
            self._waiting.pop()

    def _move_out(self, storage: torch.UntypedStorage) -> None:
        if storage.nbytes() == 0 or not storage.resizable():
            return
        host = _bytes_of(storage).to("cpu", copy=True)
        self._waiting.append((storage, host))
        storage.resize_(0)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
