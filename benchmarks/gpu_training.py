"""The lines of `benchmarks.gpu` about training: steps a second and peak memory, with and without checkpointing."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks import full_size
from benchmarks.gpu_suite import Suite
from benchmarks.interleave import Rounds
from benchmarks.report import Row, row
from benchmarks.training import Ready, a_request, pictures, ready
from service.engine.models import Models
from service.training.estimates import peak_bytes

GOALS = {True: 16.0, False: 22.0}
"""Steps a second on one H200, with and without checkpointing."""
SETTLING_STEPS = 3


def steps(suite: Suite) -> None:
    """Batch 1, attention LoRA of rank 16, AdamW, the frozen weights in bfloat16; the toy in float32."""
    suite.free()
    tiny = suite.device.type == "cpu"
    loaded = full_size.build(
        suite.scale.sizes, device=suite.device, dtype=torch.float32 if tiny else torch.bfloat16
    )
    figures: dict[str, Any] = {}
    for checkpointing in (True, False):
        name = "with checkpointing" if checkpointing else "without checkpointing"
        try:
            figures[name] = _measured(suite, loaded, checkpointing, name)
        except torch.OutOfMemoryError as exc:
            suite.leave_out(f"train {name}", f"out of device memory: {str(exc).splitlines()[0]}")
    suite.kept.add("train", figures)


def _measured(suite: Suite, loaded: Models, checkpointing: bool, name: str) -> dict[str, Any]:
    request = a_request(
        steps=SETTLING_STEPS + suite.scale.train_steps,
        rank=16,
        learning_rate=1e-4,
        train_batch_size=1,
        resolution=suite.scale.edge,
        gradient_checkpointing=checkpointing,
        mixed_precision="no" if suite.device.type == "cpu" else "bf16",
    )
    training = ready(loaded, request, pictures(1, suite.scale.edge))
    try:
        return _figures(suite, training, name, checkpointing)
    finally:
        training.learned.remove()
        loaded.unets["base"].disable_gradient_checkpointing()


def _figures(suite: Suite, ours: Ready, name: str, checkpointing: bool) -> dict[str, Any]:
    estimated = peak_bytes(ours.request, ours.model) / 2**30
    cuda = suite.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()  # what was needed for the latents is not held against the steps
        torch.cuda.reset_peak_memory_stats(suite.device)
    # A step ends with its loss on the host, so the clock has seen all of it.
    seconds = [done.seconds for done in ours.training.run()][SETTLING_STEPS:]
    taken = Rounds({"step": seconds, "second": [1.0] * len(seconds)})
    rate = taken.ratio("second", "step")
    suite.rows.append(
        row(
            f"train {name}, {suite.scale.edge} px",
            rate,
            "steps/s",
            goal=suite.goal(GOALS[checkpointing]),
            at_least=True,
        )
    )
    peak = torch.cuda.max_memory_allocated(suite.device) / 2**30 if cuda else None
    suite.rows.append(
        Row(
            f"train {name}, peak memory",
            peak,
            "GiB",
            note=("" if cuda else "a CPU does not say; ") + f"estimated before: {estimated:.3g} GiB",
        )
    )
    return {
        "steps": len(seconds),
        "steps_per_second": asdict(rate),
        "peak_gib": peak,
        "estimated_gib": estimated,
    }
