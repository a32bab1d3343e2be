"""Intake: what a file is, and whether it may come in, decided on its header before a tensor is touched.

A file is accepted only when every tensor in it is understood and fits a layer of a model that is served; there is no
such thing as a part of a file. Then its numbers are read once, in pieces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO, Final

from lora_registry import metadata
from lora_registry.base_model import BaseModel
from lora_registry.embeddings import embeddings_of, is_embedding_key, looks_learned
from lora_registry.families import foreign_form, known_models
from lora_registry.findings import Findings
from lora_registry.header import Header, UnreadableHeader, read_header
from lora_registry.keys import Slot, parse_key
from lora_registry.modules import modules_of
from lora_registry.records import Inspection, Kind, Reason
from lora_registry.values import measure, read_alphas

_CROSS_ATTENTION: Final = re.compile(r"attn2[._]to_[kv]$")


def inspect(file: BinaryIO, size_bytes: int, bases: Sequence[BaseModel], auto_v3: str = "") -> Inspection:
    """Everything about a file of `size_bytes` at whose beginning `file` stands, its numbers included.

    `bases` are the models that it may be for; with several, the first that it fits.
    """
    try:
        header = read_header(file, size_bytes)
    except UnreadableHeader as exc:
        return _refused((exc.reason,))
    verdict = judge(header, bases, auto_v3)
    if not verdict.accepted:
        return verdict
    findings, warnings = Findings(), Findings()
    modules = measure(file, header.tensors, verdict.modules, findings, warnings)
    if findings:
        return _refused(findings.reasons(), verdict)
    return _accepted(replace(verdict, modules=modules), (*verdict.warnings, *warnings.reasons()))


def plan(file: BinaryIO, size_bytes: int, bases: Sequence[BaseModel]) -> tuple[Header, Inspection]:
    """What an engine needs to load a file that was accepted: its header, and its modules with their true scales.

    Of the tensors only the alphas are read. A file that was never accepted comes back refused.
    """
    try:
        header = read_header(file, size_bytes)
    except UnreadableHeader as exc:
        return Header({}, {}, 0), _refused((exc.reason,))
    verdict, findings = judge(header, bases), Findings()
    modules = read_alphas(file, header.tensors, verdict.modules, findings)
    if findings:
        return header, _refused(findings.reasons(), verdict)
    return header, replace(verdict, modules=modules)


def judge(header: Header, bases: Sequence[BaseModel], auto_v3: str = "") -> Inspection:
    """The verdict on the header alone. Alphas that are tensors are not known yet: those modules have a scale of 1."""
    foreign = foreign_form(header.tensors)
    if foreign:
        return _refused(foreign)
    slots = {key: slot for key in header.tensors if (slot := parse_key(key))}
    widths = _cross_attention_widths(header, slots)
    if len(widths) > 1:
        text = " and ".join(str(width) for width in sorted(widths))
        return _refused(
            (
                Reason(
                    "family.mixed",
                    f"its cross-attentions are {text} wide: parts of different models in one file",
                ),
            )
        )
    attempts = [_fit(header, slots, base, auto_v3) for base in bases]
    for attempt in attempts:
        if attempt.accepted:
            return attempt
    return _named(header, slots, bases, widths) or min(attempts, key=_misfits)


def _fit(header: Header, slots: Mapping[str, Slot], base: BaseModel, auto_v3: str) -> Inspection:
    """The verdict if the file were for this model."""
    findings, warnings = Findings(), Findings()
    config = metadata.adapter_config(header.metadata, findings)
    others = [key for key in header.tensors if key not in slots]
    unknown = [key for key in others if not is_embedding_key(key)]
    if unknown and not slots and len(unknown) == len(header.tensors) and looks_learned(header.tensors, base):
        unknown = []
    if unknown:
        findings.add(*_what_is_unknown(unknown, header, base), unknown)
    modules, module_format = (
        modules_of(slots, header.tensors, base, config, findings, warnings) if slots else ((), "")
    )
    embeddings, embedding_format = embeddings_of(
        [key for key in others if key not in unknown], header.tensors, base, findings, warnings
    )
    metadata.disagreements(header.metadata, base, auto_v3, warnings)
    found = Inspection(
        verdict="accepted",
        reasons=(),
        warnings=(),
        kind=_kind(bool(slots), bool(embeddings)),
        format="+".join(filter(None, (module_format, embedding_format))) or "unknown",
        family=base.name,
        modules=modules,
        embeddings=embeddings,
        triggers=metadata.clean_words(
            (*dict.fromkeys(e.token for e in embeddings if e.token), *metadata.trigger_words(header.metadata))
        ),
        tags=metadata.tags(header.metadata),
        metadata=metadata.published(header.metadata),
    )
    if findings:
        return _refused(findings.reasons(), found)
    return _accepted(found, warnings.reasons())


def _what_is_unknown(unknown: list[str], header: Header, base: BaseModel) -> tuple[str, str]:
    weights = [key for key in unknown if key.removesuffix(".weight") in base.layers["unet"]]
    if len(weights) > len(header.tensors) // 4:
        return "format.checkpoint", "it has the tensors of a full UNet, which is not a LoRA"
    return (
        "keys.unknown",
        f"{len(unknown)} of {len(header.tensors)} tensors are none of a LoRA or an embedding",
    )


def _cross_attention_widths(header: Header, slots: Mapping[str, Slot]) -> set[int]:
    """Input widths of the layers that read the text: what tells the families apart."""
    return {
        header.tensors[key].shape[1]
        for key, slot in slots.items()
        if slot.role in ("down", "hada_w1_b")
        and slot.part == "unet"
        and _CROSS_ATTENTION.search(slot.path)
        and len(header.tensors[key].shape) >= 2
        # A transposed matrix has its rank there.
        and header.tensors[key].shape[0] < header.tensors[key].shape[1]
    }


def _named(
    header: Header, slots: Mapping[str, Slot], bases: Sequence[BaseModel], widths: set[int]
) -> Inspection | None:
    """A refusal that says for which other model the file was made; None where that cannot be told."""
    served = " or ".join(base.name for base in bases)
    if widths & {base.cross_attention_width for base in bases}:
        return None  # it is for a model served here, and its fault is another
    for code, known in known_models().items():
        if any(known.name == base.name for base in bases):
            continue
        if known.cross_attention_width in widths or (not widths and _fit(header, slots, known, "").accepted):
            return _refused((Reason(code, f"it was made for {known.name}; this service runs {served}"),))
    if widths:
        message = f"its cross-attentions are {min(widths)} wide, as in no model known here; this service runs {served}"
        return _refused((Reason("family.unknown", message),))
    return None


def _misfits(attempt: Inspection) -> int:
    return sum(max(reason.count, 1) for reason in attempt.reasons)


def _kind(has_modules: bool, has_embeddings: bool) -> Kind:
    if has_modules:
        return "bundle" if has_embeddings else "lora"
    return "embedding" if has_embeddings else "unknown"


def _accepted(found: Inspection, warnings: tuple[Reason, ...]) -> Inspection:
    return replace(found, verdict="accepted_with_warnings" if warnings else "accepted", warnings=warnings)


def _refused(reasons: tuple[Reason, ...], found: Inspection | None = None) -> Inspection:
    if found is None:
        return Inspection("refused", reasons, (), "unknown", "unknown", "unknown")
    return replace(found, verdict="refused", reasons=reasons, warnings=(), modules=(), embeddings=())
