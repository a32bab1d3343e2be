"""LoRA files, and where to keep them, for the tests of the registry's routes and clients."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_registry import Registry
from unit.lora_registry.makers import layers, peft, pocket, safetensors

PICKLE = b"\x80\x04\x95" + b"\x00" * 60


def lora_file(seed: int = 0, count: int = 2, **metadata: str) -> bytes:
    """A good LoRA for the pocket model of a few kilobytes; another for each seed."""
    return safetensors(peft(layers(pocket(), count=count), rank=2), {"seed": str(seed), **metadata})


def sd15_file() -> bytes:
    """A LoRA for another model."""
    import numpy as np

    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return safetensors(
        {
            f"{stem}.lora_down.weight": np.zeros((4, 768), "<f2"),
            f"{stem}.lora_up.weight": np.zeros((320, 4), "<f2"),
            f"{stem}.alpha": np.array(4.0, "<f2"),
        }
    )


@contextmanager
def registry_in_memory() -> Iterator[tuple[Registry, Path]]:
    """An empty registry for the pocket model, and its folder: in memory where that is possible, as a publish waits
    for the disk."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="loras-", dir=where) as name:
        folder = Path(name)
        with Registry.connect([pocket()], data=folder) as registry:
            yield registry, folder
