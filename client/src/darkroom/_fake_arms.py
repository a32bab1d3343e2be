"""The arms and seeds of a comparison as `FakeDarkroom` reads them, by the service's rules and names."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from darkroom._errors import refusal_of
from darkroom._fake_answers import refused
from darkroom._fake_loras import FakeLoras, Refused
from darkroom.types import CompareRequest, FieldError, LoraUse, PictureSettings, PlannedArm, SeedCount

_SHAM_SEED = 0


def arms_of(request: CompareRequest, loras: FakeLoras) -> list[PlannedArm]:
    """Base and arm together for each, with refs resolved.

    Raises:
        Refused
    """
    found = [*_of_preset(request), *_of_arms(request), *_of_axes(request)]
    names = [arm.name for arm in found]
    for name in names:
        if names.count(name) > 1:
            raise _invalid("/arms", f"two arms are called '{name}'")
    if request.baseline not in (None, *names):
        raise _invalid("/baseline", f"no arm is called '{request.baseline}'")
    return [arm.model_copy(update={"settings": _resolved(arm.settings, loras)}) for arm in found]


def seeds_of(seeds: tuple[int, ...] | SeedCount) -> list[int]:
    """The seeds themselves; those of a count by the hash of the root and their number."""
    if isinstance(seeds, tuple):
        return list(seeds)
    hashes = (hashlib.sha256(f"{seeds.root}/{n}".encode()).digest() for n in itertools.count())
    drawn = dict.fromkeys(int.from_bytes(found[:4], "big") for found in itertools.islice(hashes, seeds.count))
    return list(drawn)


def _of_preset(request: CompareRequest) -> Iterator[PlannedArm]:
    lora = request.lora
    if request.preset is None or lora is None:
        return
    negative = request.base.negative_prompt

    def arm(name: str, word: str | None, *loras: LoraUse) -> PlannedArm:
        said: dict[str, Any] = {}
        if word is not None:
            said["negative_prompt"] = ", ".join(filter(None, (negative, word)))
        if loras:
            said["loras"] = [use.model_dump() for use in (*request.base.loras, *loras)]
        return PlannedArm(name=name, settings=_merged(request.base, said))

    yield arm("base", None)
    yield arm("word", request.word)
    yield arm("LoRA + word", request.word, lora)
    if request.preset == "controlled":
        yield arm("empty negative", "")
        yield arm("placebo word", request.placebo)
        yield arm("LoRA", None, lora.model_copy(update={"scope": "both"}))
        yield arm("sham LoRA + word", request.word, lora.model_copy(update={"sham": _SHAM_SEED}))
        for scope in ("uncond", "cond"):
            if scope != lora.scope:
                yield arm(f"LoRA on {scope} + word", request.word, lora.model_copy(update={"scope": scope}))


def _of_arms(request: CompareRequest) -> Iterator[PlannedArm]:
    for arm in request.arms:
        settings = _merged(request.base, arm.set.model_dump(exclude_unset=True))
        yield PlannedArm(name=arm.name, settings=settings, prompt=arm.prompt)


def _of_axes(request: CompareRequest) -> Iterator[PlannedArm]:
    axes = request.axes or {}
    if request.combine == "zip" and len({len(values) for values in axes.values()}) > 1:
        raise _invalid("/axes", "axes that are zipped need as many values each")
    combined = (
        zip(*axes.values(), strict=True) if request.combine == "zip" else itertools.product(*axes.values())
    )
    for values in combined if axes else ():
        changes = dict(zip(axes, values, strict=True))
        try:
            settings = _merged(request.base, _nested(changes))
        except ValidationError as error:
            raise _invalid("/axes", refusal_of(error).detail) from None
        yield PlannedArm(name=", ".join(itertools.starmap(_label, changes.items()))[:100], settings=settings)


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as fields of fields, refs as LoRAs."""
    said: dict[str, Any] = {}
    for name, value in changes.items():
        field, _, inner = name.partition(".")
        if field == "loras":
            value = [{"ref": use} if isinstance(use, str) else use for use in _several(value)]
        if inner:
            said[field] = {**said.get(field, {}), inner: value}
        else:
            said[field] = value
    return said


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _label(field: str, value: Any) -> str:
    if field != "loras":
        return f"{field}={'none' if value is None else value}"
    uses = [use if isinstance(use, str) else LoraUse.model_validate(use).ref for use in _several(value)]
    return " + ".join(uses) or "no LoRA"


def _merged(base: PictureSettings, said: Mapping[str, Any]) -> PictureSettings:
    """`base` with what is said; of the refiner, too, only that."""
    fields = {**base.model_dump(exclude_unset=True), **said}
    if isinstance(said.get("refiner"), dict) and base.refiner is not None:
        fields["refiner"] = {**base.refiner.model_dump(exclude_unset=True), **said["refiner"]}
    return PictureSettings.model_validate(fields)


def _resolved(settings: PictureSettings, loras: FakeLoras) -> PictureSettings:
    versions = loras.named_in([use.ref for use in settings.loras])
    uses = tuple(
        use.model_copy(update={"ref": version.ref})
        for use, version in zip(settings.loras, versions, strict=True)
    )
    return settings.model_copy(update={"loras": uses}) if uses else settings


def _invalid(pointer: str, message: str) -> Refused:
    return refused(422, "invalid_option", message, FieldError(pointer=pointer, message=message))
