"""A file's tensors as changes of a model's layers, or the reasons why they are not."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lora_registry.base_model import BaseModel, Layer
from lora_registry.findings import Findings
from lora_registry.header import Tensor
from lora_registry.keys import Slot
from lora_registry.metadata import AdapterConfig
from lora_registry.records import Component, Module
from lora_registry.shapes import Misfit, fit

FLOATS = frozenset({"F16", "BF16", "F32"})
ALPHA_TYPES = FLOATS | {"F64", "I64", "I32"}


@dataclass
class _Gathered:
    """The tensors of one layer, by role."""

    keys: dict[str, str] = field(default_factory=dict)
    spellings: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Place:
    component: Component
    layer: str
    variant: str
    """Of kohya's names: `sgm` or `diffusers`; empty elsewhere."""


def modules_of(
    slots: Mapping[str, Slot],
    tensors: Mapping[str, Tensor],
    base: BaseModel,
    config: AdapterConfig,
    findings: Findings,
    warnings: Findings,
) -> tuple[tuple[Module, ...], str]:
    """The modules that these slots make up for this model, and the name of their format.

    What does not fit goes to `findings`; the modules are worth something only if that stays empty.
    """
    encoder = _encoder_by_shape(slots, tensors, base)
    gathered: dict[tuple[Component, str], _Gathered] = {}
    formats: set[tuple[str, str]] = set()
    for key, slot in slots.items():
        place = _locate(slot, base, encoder)
        if place is None:
            findings.add("keys.unknown_layer", f"{base.name} has no layer for '{slot.path[:120]}'", [key])
            continue
        formats.add((slot.naming, place.variant))
        module = gathered.setdefault((place.component, place.layer), _Gathered())
        if slot.role in module.keys:
            findings.add("module.duplicate", f"two tensors are the {slot.role} of one layer", [key])
        module.keys[slot.role] = key
        module.spellings |= {slot.spelling} - {""}
    if encoder and any(slot.part == "some_text_encoder" for slot in slots.values()):
        warnings.add(
            "component.by_shape", f"the file does not say which text encoder it is for; it fits {encoder}"
        )
    fitted = (
        _module(component, name, part, tensors, base.layers[component][name], config, findings)
        for (component, name), part in gathered.items()
    )
    modules = [module for module in fitted if module]
    _check_alphas(modules, slots.values(), config, warnings)
    spellings = {spelling for found in gathered.values() for spelling in found.spellings}
    return tuple(modules), _format(formats, spellings, findings)


def _locate(slot: Slot, base: BaseModel, encoder: Component | None) -> _Place | None:
    if slot.part == "unet":
        return _locate_in_unet(slot, base)
    component: Component | None
    if slot.part == "only_text_encoder":
        component = "text_encoder" if "text_encoder_2" not in base.layers else None
    else:
        component = encoder if slot.part == "some_text_encoder" else slot.part
    if component is None or component not in base.layers:
        return None
    if slot.naming == "kohya":
        layer = base.kohya_encoders[component].get(slot.path)
        return _Place(component, layer, "") if layer else None
    for layer in (slot.path, f"text_model.{slot.path}"):
        if layer in base.layers[component]:
            return _Place(component, layer, "")
    return None


def _locate_in_unet(slot: Slot, base: BaseModel) -> _Place | None:
    if slot.naming == "kohya":
        layer, variant = base.kohya_unet.get(slot.path, ("", ""))
    elif slot.naming == "comfy":
        layer, variant = base.from_sgm.get(slot.path, ""), "sgm"
    else:
        layer, variant = slot.path if slot.path in base.layers["unet"] else "", ""
    return _Place("unet", layer, variant) if layer else None


def _encoder_by_shape(
    slots: Mapping[str, Slot], tensors: Mapping[str, Tensor], base: BaseModel
) -> Component | None:
    """The one text encoder that every unnamed text encoder tensor fits; None where it is none, or not one."""
    inputs = {
        slot.path: tensors[key].shape[-1]
        for key, slot in slots.items()
        if slot.part == "some_text_encoder" and slot.role in ("down", "hada_w1_b") and tensors[key].shape
    }
    fitting: list[Component] = []
    for component, layers in base.layers.items():
        if component != "unet" and inputs:
            found = [
                (layers.get(path) or layers.get(f"text_model.{path}"), width)
                for path, width in inputs.items()
            ]
            if all(layer and layer.inputs == width for layer, width in found):
                fitting.append(component)
    return fitting[0] if len(fitting) == 1 else None


def _module(
    component: Component,
    name: str,
    found: _Gathered,
    tensors: Mapping[str, Tensor],
    layer: Layer,
    config: AdapterConfig,
    findings: Findings,
) -> Module | None:
    keys = found.keys
    for role, key in keys.items():
        if tensors[key].dtype not in (ALPHA_TYPES if role == "alpha" else FLOATS):
            findings.add(
                "dtype.unsupported", f"a tensor is {tensors[key].dtype}; F16, BF16 and F32 are read", [key]
            )
    try:
        algorithm, rank = fit(layer, {role: tensors[key].shape for role, key in keys.items()})
    except Misfit as misfit:
        at_fault = [keys[role] for role in misfit.roles if role in keys] or list(keys.values())
        findings.add(misfit.code, f"{misfit.message} (first at '{component}.{name}')", sorted(at_fault))
        return None
    if config.uses_dora(component) and "magnitude" not in keys:
        findings.add(
            "metadata.adapter_config",
            "its adapter configuration says DoRA, and a magnitude is missing",
            [name],
        )
    alpha = float(rank) if "alpha" in keys else config.alpha(component, name, rank, findings)
    scale = alpha / rank if rank else 1.0
    return Module(component, name, algorithm, rank, alpha, scale, bool(layer.kernel), dict(keys))


def _check_alphas(
    modules: Iterable[Module], slots: Iterable[Slot], config: AdapterConfig, warnings: Findings
) -> None:
    decomposed = [module for module in modules if module.rank]
    without = [module for module in decomposed if "alpha" not in module.tensors]
    namings = {slot.naming for slot in slots}
    if without and len(without) < len(decomposed):
        keys = [next(iter(module.tensors.values())) for module in without]
        warnings.add(
            "alpha.partial", "some modules have an alpha and some do not; those get a scale of 1", keys
        )
    elif without and namings == {"bare"} and not config:
        warnings.add("alpha.assumed", "the file does not say alpha; the scale is taken to be 1")


def _format(formats: set[tuple[str, str]], spellings: set[str], findings: Findings) -> str:
    namings = {naming for naming, _ in formats}
    variants = {variant for _, variant in formats} - {""}
    if len(namings) > 1 or len(variants) > 1 or len(spellings) > 1:
        mixture = sorted(namings | variants | spellings)
        findings.add("format.mixed", f"the tensors are named in several ways at once ({', '.join(mixture)})")
    if not formats:
        return "unknown"
    naming = min(namings)
    if naming in ("kohya", "comfy"):
        return f"{naming}-{min(variants, default='text-encoders')}"
    return f"{naming}-{min(spellings, default='lycoris')}"


def size_of_change(module: Module, norms: Mapping[str, float], tensors: Mapping[str, Tensor]) -> float:
    """About the largest Frobenius norm that a module's ΔW may have (before DoRA), from its tensors' norms by role.

    A bound for LoRA and LoKr. For LoHa the product of the norms is off by the root of the number of weights, as
    its two factors are multiplied element by element and not summed; that root is taken out.
    """
    total = abs(module.scale)
    for role, norm in norms.items():
        if role not in ("alpha", "magnitude", "dora_scale"):
            total *= norm
    if module.algorithm == "loha":
        counts = [tensors[module.tensors[role]].count for role in ("hada_w1_a", "hada_w1_b")]
        total *= module.rank / math.sqrt(math.prod(counts))
    return total if not math.isnan(total) else math.inf
