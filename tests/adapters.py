"""LoRAs for tests of the engine: random ones, on the device's side and as what an order names."""

from collections.abc import Iterable

import torch

from lora_registry.records import Component
from service.engine.loras.arranged import Arranged, arrange
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter
from service.engine.models import Models
from service.engine.orders import LoraOrder

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def attention_layers(models: Models, component: Component = "unet") -> list[str]:
    """The names that an attention-only LoRA changes."""
    ends = ATTENTION if component == "unet" else ("q_proj", "k_proj", "v_proj", "out_proj")
    return [name for name in models.layout[component] if name.endswith(ends)]


def random_adapter(
    models: Models,
    seed: int,
    *,
    layers: Iterable[str] | None = None,
    component: Component = "unet",
    rank: int = 4,
    size: float = 0.08,
) -> Adapter:
    """Plain pairs on these layers, by default on all attention; its digest is the seed."""
    generator = torch.Generator().manual_seed(seed)
    pristine = dict(models.weights[component].pristine())
    changes = {}
    for name in attention_layers(models, component) if layers is None else layers:
        outputs, inputs = pristine[name].shape[0], pristine[name][0].numel()
        up = torch.randn(outputs, rank, generator=generator) * size
        down = torch.randn(rank, inputs, generator=generator) * size
        changes[name] = Change("lora", 1.0, {"up": up, "down": down})
    return Adapter(f"sha256:{seed:064x}", {component: changes}, {}, 0)


def arranged(models: Models, *adapters: Adapter) -> dict[str, Arranged]:
    """As an engine takes them, by digest."""
    return {adapter.digest: arrange(adapter, models.layout) for adapter in adapters}


def a_lora(adapter: Adapter, weight: float = 1.0, **fields: object) -> LoraOrder:
    """What an order says of it."""
    seed = int(adapter.digest.removeprefix("sha256:"), 16)
    return LoraOrder(f"random-{seed}@1", f"random-{seed}", adapter.digest, weight=weight, **fields)  # type: ignore[arg-type]
