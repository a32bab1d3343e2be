"""A comparison's request becomes arms, and arms × prompts × seeds become requests for single pictures. Pure."""

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import pydantic

from darkroom.types import CompareRequest, GenerateRequest, LoraUse, PictureSettings, SeedCount
from darkroom.types.compare import MAX_ARMS
from darkroom.types.faults import invalid_request
from service.errors import InvalidOption

SHAM_SEED: Final = 0
_STRAY: Final = re.compile(r"\{(?!prompt\})\w+\}")
"""What looks like `{prompt}` and is misspelt."""


@dataclass(frozen=True)
class ExpandedArm:
    """One arm with every field of base and arm together; `pointer` is the part of the request that it comes from."""

    name: str
    settings: PictureSettings
    prompt: str | None
    pointer: str
    said_at: Mapping[str, str] = field(default_factory=dict)
    """Where the request says what of the settings is the arm's own (`loras`, `loras/2`, `refiner/denoising_end`); the
    rest is the base's."""
    is_sham: bool = False
    """The arm of a preset that a LoRA must have a sham for."""

    def says(self, prompt: str) -> str:
        """What is drawn where the comparison asks for `prompt`."""
        return prompt if self.prompt is None else self.prompt.replace("{prompt}", prompt)


@dataclass(frozen=True)
class Expanded:
    """What is to be drawn: for each prompt, for each seed, every arm."""

    arms: tuple[ExpandedArm, ...]
    baseline: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def without_shams(self) -> "Expanded":
        """The same without the preset's sham, for a LoRA that can have none.

        Raises:
            InvalidOption: it is the baseline.
        """
        if any(arm.is_sham and arm.name == self.baseline for arm in self.arms):
            raise InvalidOption(
                f"there is no arm '{self.baseline}': a DoRA has no sham; name another baseline",
                pointer="/baseline",
            )
        return replace(self, arms=tuple(arm for arm in self.arms if not arm.is_sham))

    def cells(self) -> Iterator[tuple[ExpandedArm, str, int]]:
        """In the order of their indices."""
        for prompt, seed, arm in itertools.product(self.prompts, self.seeds, self.arms):
            yield arm, prompt, seed


def expanded(request: CompareRequest) -> Expanded:
    """All arms, prompts and seeds of a request.

    Raises:
        InvalidOption: two arms have one name, an axis or the baseline is not there, there are too many arms.
    """
    arms = [*_of_preset(request), *_of_arms(request), *_of_axes(request)]
    if len(arms) > MAX_ARMS:
        raise InvalidOption(
            f"the comparison has {len(arms)} arms and {MAX_ARMS} are allowed; name fewer",
            pointer="/axes" if request.axes else "/arms",
        )
    seen: dict[str, ExpandedArm] = {}
    for arm in arms:
        if arm.name in seen:
            raise _same_name(arm)
        seen[arm.name] = arm
    return Expanded(
        tuple(arms), _baseline(request, list(seen)), request.prompts, tuple(_seeds(request.seeds))
    )


def _same_name(arm: ExpandedArm) -> InvalidOption:
    if arm.pointer == "/axes":
        told = "name each value of an axis once, and no two that begin with the same 100 characters"
        return InvalidOption(f"two arms are called '{arm.name}'; {told}", pointer=arm.pointer)
    return InvalidOption(
        f"two arms are called '{arm.name}'; give each a name of its own", pointer=f"{arm.pointer}/name"
    )


def request_of(arm: ExpandedArm, prompt: str, seed: int) -> GenerateRequest:
    """The request for one cell's picture.

    Raises:
        InvalidOption: the arm's own prompt becomes too long.
    """
    named = arm.settings.model_dump(exclude_unset=True)
    try:
        return GenerateRequest.model_validate({**named, "prompt": arm.says(prompt), "seed": seed})
    except pydantic.ValidationError as exc:
        raise InvalidOption(_first(exc), pointer=f"{arm.pointer}/prompt") from exc


def _baseline(request: CompareRequest, names: Sequence[str]) -> str:
    if request.baseline is None:
        return names[0]
    if request.baseline not in names:
        near = difflib.get_close_matches(request.baseline, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names[:8])}"
        raise InvalidOption(f"no arm is called '{request.baseline}'; {hint}", pointer="/baseline")
    return request.baseline


def _seeds(seeds: tuple[int, ...] | SeedCount) -> Iterator[int]:
    """32 bits each, without doubles; the first of a larger count are those of a smaller one."""
    if isinstance(seeds, tuple):
        yield from seeds
        return
    given: set[int] = set()
    for number in itertools.count():
        if len(given) == seeds.count:
            return
        seed = int.from_bytes(hashlib.sha256(f"{seeds.root}/{number}".encode()).digest()[:4], "big")
        if seed not in given:
            given.add(seed)
            yield seed


def _of_arms(request: CompareRequest) -> Iterator[ExpandedArm]:
    for place, arm in enumerate(request.arms):
        if arm.prompt is not None and (stray := _STRAY.search(arm.prompt)):
            raise InvalidOption(
                f"'{stray[0]}' stands for nothing; `{{prompt}}` is where the comparison's prompt goes",
                pointer=f"/arms/{place}/prompt",
            )
        if arm.prompt is not None and "{prompt}" not in arm.prompt and len(request.prompts) > 1:
            raise InvalidOption(
                "the arm's prompt has no `{prompt}`: it would draw the same pictures for every prompt, and each would "
                "count as often; write `{prompt}` where the comparison's stands",
                pointer=f"/arms/{place}/prompt",
            )
        settings = merged(request.base, arm.set)
        pointer = f"/arms/{place}"
        said_at = {field: f"{pointer}/set/{field}" for field in arm.set.model_fields_set}
        yield ExpandedArm(arm.name, settings, arm.prompt, pointer, said_at)


def _of_preset(request: CompareRequest) -> Iterator[ExpandedArm]:
    if request.preset is None or request.lora is None:
        return
    base, lora = request.base, request.lora
    if base.guidance_scale <= 1:
        raise InvalidOption(
            f"the preset `{request.preset}` is about the negative prompt, which counts for nothing at a guidance_scale "
            "of 1 or below",
            pointer="/base/guidance_scale",
        )

    def arm(name: str, *loras: LoraUse, word: Literal["word", "placebo"] | None = None) -> ExpandedArm:
        changes: dict[str, object] = {}
        said_at = {}
        if word is not None:
            changes["negative_prompt"] = _and(base.negative_prompt, getattr(request, word))
            said_at["negative_prompt"] = f"/{word}"
        if loras:
            changes["loras"] = (*base.loras, *loras)
            said_at[f"loras/{len(base.loras)}"] = "/lora"
        try:
            settings = merged(base, PictureSettings.model_validate(changes))
        except pydantic.ValidationError as exc:
            pointer = "/base/loras" if exc.errors()[0]["loc"][0] == "loras" else f"/{word}"
            raise InvalidOption(f"arm '{name}': {_first(exc)}", pointer=pointer) from exc
        return ExpandedArm(name, settings, None, "/preset", said_at)

    yield arm("base")
    yield arm("word", word="word")
    yield arm("LoRA + word", lora, word="word")
    if request.preset == "controlled":
        plain = arm("empty negative")
        empty = PictureSettings(negative_prompt=base.negative_prompt or "")
        yield replace(plain, settings=merged(base, empty))
        yield arm("placebo word", word="placebo")
        yield arm("LoRA", _without_scope(lora))
        sham = lora.model_copy(update={"sham": SHAM_SEED})
        yield replace(arm("sham LoRA + word", sham, word="word"), is_sham=True)
        for scope in ("uncond", "cond"):
            if lora.scope != scope:
                yield arm(f"LoRA on {scope} + word", lora.model_copy(update={"scope": scope}), word="word")


def _without_scope(lora: LoraUse) -> LoraUse:
    """Without a negative prompt the uncond branch is told nothing; the LoRA is then asked for on both."""
    return lora if lora.scope == "both" else lora.model_copy(update={"scope": "both"})


def _and(negative: str | None, word: str) -> str:
    return f"{negative}, {word}" if negative else word


def _of_axes(request: CompareRequest) -> Iterator[ExpandedArm]:
    if not request.axes:
        return
    axes = {field: _values(field, values) for field, values in request.axes.items()}
    if request.combine == "zip":
        lengths = {len(values) for values in axes.values()}
        if len(lengths) > 1:
            told = ", ".join(f"'{field}' has {len(values)}" for field, values in axes.items())
            raise InvalidOption(f"axes that are zipped need as many values each: {told}", pointer="/axes")
        combined = list(zip(*axes.values(), strict=True))
    else:
        if (count := _product(axes)) > MAX_ARMS:
            raise InvalidOption(
                f"the axes make {count} arms and {MAX_ARMS} are allowed; name fewer values", pointer="/axes"
            )
        combined = list(itertools.product(*axes.values()))
    for values in combined:
        settings = request.base
        for value in values:
            settings = merged(settings, value.settings)
        said_at = {value.field: value.pointer for value in values}
        yield ExpandedArm(", ".join(value.name for value in values), settings, None, "/axes", said_at)


@dataclass(frozen=True)
class _Value:
    name: str
    settings: PictureSettings
    field: str
    pointer: str


def _values(field: str, values: Sequence[Any]) -> list[_Value]:
    """Each value of an axis as settings that have it alone."""
    head, _, tail = field.partition(".")
    if head not in PictureSettings.model_fields or (tail and head != "refiner"):
        near = difflib.get_close_matches(field, [*PictureSettings.model_fields, "refiner.denoising_end"], n=1)
        hint = f"did you mean '{near[0]}'?" if near else "axes are fields of `base`, or of its refiner"
        raise InvalidOption(f"there is no axis '{field[:80]}'; {hint}", pointer=f"/axes/{_escaped(field)}")
    found = []
    for place, value in enumerate(values):
        told, pointer = _as_loras(value) if head == "loras" else value, f"/axes/{_escaped(field)}/{place}"
        try:
            settings = PictureSettings.model_validate({head: {tail: told} if tail else told})
        except pydantic.ValidationError as exc:
            raise InvalidOption(_first(exc), pointer=pointer) from exc
        name = _loras_said(settings.loras) if head == "loras" else f"{field}={_said(value)}"
        found.append(_Value(name[:100], settings, field.replace(".", "/"), pointer))
    return found


def _as_loras(value: Any) -> Any:
    """A ref, a use, or a list of them, as the list that `loras` takes."""
    uses = value if isinstance(value, list) else [value]
    return [{"ref": use} if isinstance(use, str) else use for use in uses]


def _loras_said(loras: Sequence[LoraUse]) -> str:
    if not loras:
        return "no LoRA"
    return " + ".join(
        lora.ref
        + (f"×{lora.weight:g}" if lora.weight != 1 else "")
        + (f" ({lora.scope})" if lora.scope != "both" else "")
        + (f" {lora.start:g}–{lora.end:g}" if (lora.start, lora.end) != (0, 1) else "")
        + (" sham" if lora.sham is not None else "")
        for lora in loras
    )


def _said(value: Any) -> str:
    if value is None:
        return "none"
    return f"“{value}”" if (isinstance(value, str) and " " in value) or value == "" else str(value)


def _product(axes: Mapping[str, Sequence[_Value]]) -> int:
    count = 1
    for values in axes.values():
        count *= len(values)
    return count


def merged(base: PictureSettings, named: PictureSettings) -> PictureSettings:
    """`base` with every field that `named` names; of the refiner, too, only what it names."""
    fields, changes = (settings.model_dump(exclude_unset=True) for settings in (base, named))
    refiner, change = fields.get("refiner"), changes.get("refiner")
    if refiner is not None and change is not None:
        changes["refiner"] = {**refiner, **change}
    return PictureSettings.model_validate({**fields, **changes})


def _first(error: pydantic.ValidationError) -> str:
    """What is wrong, in the words that the edge has for a fault of a body."""
    (fault, *_) = invalid_request(error.errors(include_url=False, include_input=False)).errors
    return f"{fault.pointer.removeprefix('/').replace('/', '.')}: {fault.message}"


def _escaped(field: str) -> str:
    return field[:80].replace("~", "~0").replace("/", "~1")
