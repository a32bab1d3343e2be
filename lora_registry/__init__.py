"""LoRA files by name: publish, resolve, open. No torch, no HTTP.

`Registry` is the only class that others use; `records` has what it returns, `errors` what it raises, `base_model`
and `families` the models that files are checked against.
"""

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
