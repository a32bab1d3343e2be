"""LoRA files by name: publish, resolve, open. No torch, no HTTP.

`Registry` is the only class that others use; `records` has what it returns, `errors` what it raises, `base_model`
and `families` the models that files are checked against. The database's libraries are imported with `Registry` and not
before: the engine, which reads files and needs no catalogue, runs on machines without them.
"""

from typing import TYPE_CHECKING

from lora_registry.base_model import BaseModel, Layer
from lora_registry.export import Export, Form
from lora_registry.header import Header, Tensor
from lora_registry.incoming import Incoming
from lora_registry.records import (
    Alias,
    Component,
    Damage,
    Embedding,
    GcReport,
    Inspection,
    Lora,
    LoraVersion,
    Module,
    Page,
    RankCount,
    Reason,
    VerifyReport,
)

if TYPE_CHECKING:
    from lora_registry.registry import Registry

__all__ = [
    "Alias",
    "BaseModel",
    "Component",
    "Damage",
    "Embedding",
    "Export",
    "Form",
    "GcReport",
    "Header",
    "Incoming",
    "Inspection",
    "Layer",
    "Lora",
    "LoraVersion",
    "Module",
    "Page",
    "RankCount",
    "Reason",
    "Registry",
    "Tensor",
    "VerifyReport",
]


def __getattr__(name: str) -> object:
    if name == "Registry":
        from lora_registry.registry import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
