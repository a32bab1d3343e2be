"""A few processes that train one model: each has its own batch, gradients are averaged once a step."""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def average(self, parameters: Iterable[torch.nn.Parameter], figures: Sequence[float]) -> list[float]:
        """Replace every gradient by the team's mean; return the mean of `figures`. One message in all."""
        if self.size == 1:
            return list(figures)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat(
            [*(g.flatten() for g in gradients), torch.tensor(list(figures), dtype=torch.float32)]
        )
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        return flat[offset:].tolist()

    def wait(self) -> None:
        """Return when every process has come this far."""
        if self.size > 1:
            dist.barrier()


def run_team(size: int, work: Callable[..., None], *args: object) -> None:
    """Run `work(team, *args)` in `size` single-threaded processes, or right here if `size` is 1."""
    if size == 1:
        work(Team(), *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        # Daemons end with this process: none may go on training, and writing states, as an orphan.
        spawn(_join, (size, str(Path(folder) / "meeting-point"), work, args), nprocs=size, daemon=True)


def _join(
    rank: int, size: int, meeting_point: str, work: Callable[..., None], args: tuple[object, ...]
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
    try:
        work(Team(rank, size), *args)
    finally:
        dist.destroy_process_group()
