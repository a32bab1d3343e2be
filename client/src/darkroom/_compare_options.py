"""A comparison in the words of a program, made into the request that the service takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

from pydantic import BaseModel

from darkroom._errors import refused_before_sending
from darkroom.types import (
    Arm,
    CompareMetric,
    ComparePreset,
    CompareRequest,
    Direction,
    LoraUse,
    PictureSettings,
    SeedCount,
)

Settings: TypeAlias = PictureSettings | Mapping[str, object]
"""Only what is named counts. A dict has fields of `PictureSettings`; its `loras` may be refs, and that of an arm may
have a `prompt`, in which `{prompt}` stands for the comparison's."""


class CompareOptions(TypedDict, total=False):
    """What `compare` takes beside the prompts. `CompareRequest` explains each, and has the defaults."""

    seeds: int | Iterable[int] | SeedCount
    base: Settings
    arms: Mapping[str, Settings] | Sequence[Arm]
    preset: ComparePreset | None
    lora: LoraUse | str | None
    word: str
    placebo: str
    axes: Mapping[str, Sequence[object]] | None
    combine: Literal["cross", "zip"]
    baseline: str | None
    metric: CompareMetric | None
    better: Direction | None
    adherence: bool
    name: str


def compare_request(prompts: str | Iterable[str], options: CompareOptions) -> CompareRequest:
    """The request that keywords make up. What they leave out stays unsaid in it, settings of the base and of arms too.

    Raises: `InvalidRequest`
    """
    said: dict[str, object] = {field: value for field, value in options.items() if value is not None}
    said["prompts"] = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if "seeds" in options:
        said["seeds"] = _seeds(options["seeds"])
    if "base" in options:
        said["base"] = _settings(options["base"])
    if "arms" in options:
        said["arms"] = _arms(options["arms"])
    if isinstance(lora := options.get("lora"), str):
        said["lora"] = _lora(lora)
    if axes := options.get("axes"):
        said["axes"] = {field: tuple(map(_plain, values)) for field, values in axes.items()}
    with refused_before_sending():
        return CompareRequest.model_validate(said)


def _seeds(seeds: int | Iterable[int] | SeedCount) -> object:
    if isinstance(seeds, int):
        return {"count": seeds}
    return _plain(seeds) if isinstance(seeds, SeedCount) else tuple(seeds)


def _arms(arms: Mapping[str, Settings] | Sequence[Arm]) -> object:
    if not isinstance(arms, Mapping):
        return tuple(map(_plain, arms))
    return tuple(_arm(name, settings) for name, settings in arms.items())


def _arm(name: str, settings: Settings) -> object:
    changed = _settings(settings)
    prompt = {}
    if isinstance(changed, dict) and "prompt" in changed:
        prompt["prompt"] = changed.pop("prompt")
    return {"name": name, "set": changed, **prompt}


def _settings(settings: Settings) -> object:
    said = _plain(settings)
    if isinstance(said, dict) and isinstance(loras := said.get("loras"), list):
        said["loras"] = [_lora(lora) for lora in loras]
    return said


def _lora(lora: object) -> object:
    return {"ref": lora} if isinstance(lora, str) else lora


def _plain(value: object) -> object:
    """The value without classes, and of what had one only the fields that were named."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
