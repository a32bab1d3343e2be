"""Everything that a training needs to go on, in one safetensors file; no pickle.

Tensors: `learned.NAME`, `ema.NAME`, `optimizer.INDEX.KEY`, `losses`. Numbers of the optimiser that are no tensors are
JSON in the metadata, where a float comes back as the float that it was. Where an optimiser keeps a mapping under a key,
as 8-bit AdamW does, the keys are joined by slashes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from darkroom.types import TrainRequest

FORMAT = "darkroom-training-1"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` optimiser steps."""

    step: int
    learned: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    """As of `torch.optim.Optimizer.state_dict`."""
    losses: list[float]
    """Of every step so far."""
    recipe: str
    """`fingerprint` of what is trained: a checkpoint of another training is not gone on with."""
    scale: float = 0.0
    """Of the loss, in fp16."""


def fingerprint(request: TrainRequest, model: str, dataset: str) -> str:
    """Of everything that decides what the weights become."""
    text = json.dumps([request.model_dump(mode="json"), model, dataset], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_bytes(checkpoint: Checkpoint) -> bytes:
    tensors = {f"learned.{name}": value for name, value in checkpoint.learned.items()}
    tensors |= {f"ema.{name}": value for name, value in checkpoint.ema.items()}
    tensors["losses"] = torch.tensor(checkpoint.losses, dtype=torch.float64)
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer["state"].items():
        for key, value in _leaves(state):
            if isinstance(value, torch.Tensor):
                # A copy of its own: parameters may share a table, which safetensors refuses.
                tensors[f"optimizer.{index}.{key}"] = value.clone()
            else:
                numbers.setdefault(str(index), {})[key] = value
    metadata = {
        "format": FORMAT,
        "step": str(checkpoint.step),
        "recipe": checkpoint.recipe,
        "scale": repr(checkpoint.scale),
        "numbers": json.dumps(numbers),
        "groups": json.dumps(checkpoint.optimizer["param_groups"]),
    }
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)


def from_bytes(data: bytes) -> Checkpoint:
    """Raises ValueError where the bytes are no whole checkpoint."""
    try:
        tensors = load(data)
        metadata = _metadata(data)
        if metadata.get("format") != FORMAT:
            raise ValueError("the file is no checkpoint of this program")
        state: dict[int, dict[str, Any]] = {}
        for index, numbers in json.loads(metadata["numbers"]).items():
            for key, number in numbers.items():
                _put(state.setdefault(int(index), {}), key, number)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                _put(state.setdefault(int(index), {}), key, value)
        return Checkpoint(
            step=int(metadata["step"]),
            learned=_under("learned.", tensors),
            ema=_under("ema.", tensors),
            optimizer={"state": state, "param_groups": json.loads(metadata["groups"])},
            losses=tensors["losses"].tolist(),
            recipe=metadata["recipe"],
            scale=float(metadata["scale"]),
        )
    except (KeyError, json.JSONDecodeError, SafetensorError) as exc:
        raise ValueError("the checkpoint is damaged") from exc


def _leaves(state: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """What an optimiser keeps of a parameter, with the keys that lead to it."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def _put(state: dict[str, Any], path: str, value: object) -> None:
    *above, key = path.split("/")
    for name in above:
        state = state.setdefault(name, {})
    state[key] = value


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
