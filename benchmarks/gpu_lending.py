"""The line of `benchmarks.gpu` about lending: how long a server takes to move out of a train job's way, and back."""

import time

import torch

from benchmarks.gpu_suite import Suite
from benchmarks.interleave import Rounds
from benchmarks.report import Row, row
from service.engine import canary


def out_and_back(suite: Suite) -> None:
    """Seconds each way, what becomes free, and whether the same picture is made afterwards."""
    engine = suite.engine().engine
    before = canary.picture(engine).pictures[0].pixels_HWC
    cuda = suite.device.type == "cuda"
    reserved = torch.cuda.memory_reserved(suite.device) if cuda else 0
    taken: dict[str, list[float]] = {"out": [], "back": []}
    freed: list[int] = []
    for _ in range(suite.rounds):
        for way, move in (("out", engine.lend), ("back", engine.take_back)):
            suite.settle()
            began = time.perf_counter()
            move()
            taken[way].append(time.perf_counter() - began)
            if cuda and way == "out":
                freed.append(reserved - torch.cuda.memory_reserved(suite.device))
    same = bool((canary.picture(engine).pictures[0].pixels_HWC == before).all())
    rounds = Rounds({**taken, "second": [1.0] * len(taken["out"])})
    for way in taken:
        suite.rows.append(row(f"lend, weights {way}", rounds.ratio(way, "second"), "s"))
    suite.rows.append(
        Row(
            "lend, freed",
            min(freed) / 2**30 if freed else None,
            "GiB",
            note="" if cuda else "a CPU does not say",
        )
    )
    suite.rows.append(Row("lend, another picture after it", float(not same), "", goal=0.0))
    suite.kept.add("lend", {"seconds": taken, "freed_bytes": freed, "same_picture": same})
