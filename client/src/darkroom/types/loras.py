"""LoRAs on the wire: how a request uses them, and what the registry knows of them."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from darkroom.types.common import Request, Response

LoraScope = Literal["both", "cond", "uncond"]
LoraComponent = Literal["unet", "text_encoder", "text_encoder_2"]
LoraTier = Literal["device", "host", "disk", "store"]
LoraForm = Literal["original", "kohya", "diffusers"]
LoraVerdict = Literal["accepted", "accepted_with_warnings", "refused"]

MAX_LORAS = 8
MAX_REF_CHARACTERS = 140
MAX_BLOCKS = 64
MAX_VERSION = 999_999_999

Weight = Annotated[float, Field(ge=-5.0, le=5.0)]
Factor = Annotated[float, Field(ge=-5.0, le=5.0)]
BlockName = Annotated[str, Field(min_length=1, max_length=120)]


class LoraUse(Request):
    """One LoRA or embedding of a request."""

    ref: Annotated[str, Field(min_length=1, max_length=MAX_REF_CHARACTERS)]
    """`name` (its latest version), `name@3`, `name:alias` or `sha256:…`."""
    weight: Weight = 1.0
    """Strength; below zero it pushes the other way."""
    scope: LoraScope = "both"
    """The guidance branch that it bends: with the prompt (`cond`), with the negative prompt (`uncond`), or both."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the steps after which it comes into force."""
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the steps after which it is out of force."""
    components: Annotated[dict[LoraComponent, Factor], Field(min_length=1)] | None = None
    """A factor on `weight` for each component; one that is not named has 1, and 0 leaves a component alone."""
    blocks: Annotated[dict[BlockName, Factor], Field(min_length=1, max_length=MAX_BLOCKS)] | None = None
    """A factor on `weight` for blocks of the base UNet, by diffusers' names: `down_blocks.1`, `mid_block`,
    `up_blocks.0.attentions.2`. The longest name that a layer begins with counts; layers of no block named have 1."""
    sham: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    """A control for comparisons: in the place of what was learnt, changes of the same size, layer by layer, in random
    directions, which are drawn with this seed."""

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"`start` is {self.start:g} and `end` {self.end:g}; it would never be in force")
        return self


class LoraServed(Response):
    """What a ref of the request meant, and where the LoRA was found."""

    ref: str
    """`name@3`."""
    digest: str
    tier: LoraTier
    """`device`: it was ready · `host`: in the service's memory · `disk`, `store`: it had to be read first."""


class LoraReceipt(Response):
    """How one LoRA took part in an image: its ref and its bytes, and the rest as `LoraUse` has it."""

    ref: str
    """`name@3`, whatever alias the request named."""
    digest: str
    """`sha256:…` of the file; works as a `ref`."""
    auto_v3: str = ""
    """The hash that A1111 writes into pictures: 12 hex digits."""
    weight: float
    scope: LoraScope
    start: float
    end: float
    components: dict[str, float] | None = None
    blocks: dict[str, float] | None = None
    sham: int | None = None
    """Not what the file holds, but changes of its size in random directions, drawn with this seed."""


class LoraReason(Response):
    """Why a file was refused, or what to know about one that was accepted."""

    code: str
    """For programs: `family.sd1`, `pair.half`, …"""
    message: str
    keys: list[str] = Field(default_factory=list)
    """The first tensors that it is about."""
    count: int = 0
    """How many there are; 0: it is about the whole file."""


class LoraRankCount(Response):
    """How many layers of one component have this rank, alpha and algorithm."""

    component: str
    algorithm: str
    rank: int
    alpha: float
    modules: int


class LoraInspection(Response):
    """What intake says about a file that was only shown to it."""

    verdict: LoraVerdict
    reasons: list[LoraReason] = Field(default_factory=list)
    """Why it is refused; empty where it is not."""
    warnings: list[LoraReason] = Field(default_factory=list)
    kind: str
    """`lora`, `embedding`, `bundle` (both) or `unknown`."""
    format: str
    """How its tensors are named: `diffusers-peft`, `kohya-sgm`, …"""
    family: str
    """The model that it is for."""
    components: list[str] = Field(default_factory=list)
    modules: int = 0
    """How many layers of the model it changes."""
    triggers: list[str] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)
    metadata: dict[str, str] = Field(default_factory=dict)
    """What the file says of itself, as far as that is on an allow-list."""


class LoraSource(Response):
    """A LoRA that went into a blend."""

    ref: str
    digest: str
    weight: float


class LoraLineage(Response):
    """How a LoRA was made here. What does not apply to its origin is not there."""

    origin: str
    """`train-job` or `blend`."""
    code: str
    """Version of the service."""
    request: dict[str, JsonValue]
    """What was asked for; of a train job with every default filled in, sample prompts left out."""
    seed: int | None = None
    job: str | None = None
    dataset: str | None = None
    """Digest of the pictures."""
    pictures: int | None = None
    step: int | None = None
    """Optimiser steps up to the checkpoint that was chosen."""
    model: str | None = None
    """Fingerprint of the weights that it was trained on."""
    sources: list[LoraSource] | None = None


class LoraVersion(Response):
    """One published file. It never changes."""

    name: str
    version: int
    ref: str
    """`name@3`."""
    digest: str
    """`sha256:…` of the file; works as a ref."""
    size_bytes: int
    auto_v2: str
    """The hash that Civitai lists: 10 hex digits."""
    auto_v3: str
    """The hash that A1111 writes into pictures: 12 hex digits."""
    kind: str
    """`lora`, `embedding` or `bundle` (both)."""
    format: str
    """How its tensors are named: `diffusers-peft`, `kohya-sgm`, …"""
    family: str
    """The model that it is for."""
    components: list[str]
    algorithms: list[str]
    """Of `lora`, `dora`, `locon`, `loha`, `lokr`."""
    ranks: list[LoraRankCount]
    tokens: list[str]
    """Words that its embeddings teach the text encoders."""
    triggers: list[str]
    """Words that call on it in a prompt."""
    tags: list[str]
    description: str
    metadata: dict[str, str]
    """What the file says of itself, as far as that is on an allow-list."""
    warnings: list[LoraReason]
    created_at: datetime
    existing: bool = False
    """In the answer to a publish: these bytes were there already, under this name."""
    lineage: LoraLineage | None = None
    """None: the file came from elsewhere."""


class LoraAlias(Response):
    """A movable name of a version."""

    name: str
    alias: str
    ref: str
    """`name:alias`."""
    version: int
    digest: str
    etag: str
    """Changes with every move; send it in `If-Match` to move the alias only from here."""
    updated_at: datetime


class LoraAliasMove(Request):
    """Where an alias shall point."""

    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


class Lora(Response):
    """A name with its highest version and its aliases."""

    name: str
    latest: LoraVersion
    version_count: int
    """How many versions there are that were not deleted."""
    aliases: list[LoraAlias]
    created_at: datetime


class LoraPage(Response):
    """Some LoRAs, by name."""

    items: list[Lora]
    next_cursor: str = ""
    """The `cursor` of the next page; empty where this is the last one."""


class LoraVersionPage(Response):
    """Some versions of a LoRA, the highest first."""

    items: list[LoraVersion]
    next_cursor: str = ""
    """The `cursor` of the next page; empty where this is the last one."""


BlendMethod = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"
]


class BlendSource(Request):
    """One LoRA of a blend."""

    ref: Annotated[str, Field(min_length=1, max_length=MAX_REF_CHARACTERS)]
    weight: Weight = 1.0


class BlendRequest(Request):
    """Several LoRAs to become one, a new version of the LoRA that the path names.

    `linear` and `cat` are the exact sum, as in one request; `svd` the nearest to it of a `rank`; TIES and DARE thin the
    changes out before they add them, on the pairs themselves or, with `_svd`, on the changes of whole layers, which
    takes minutes for a large model.
    """

    sources: Annotated[tuple[BlendSource, ...], Field(min_length=1, max_length=MAX_LORAS)]
    method: BlendMethod = "linear"
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Of the new LoRA, where the method needs one (`svd`, `…_svd`)."""
    density: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the numbers that TIES and DARE keep."""
    majority_sign: Literal["total", "frequency"] | None = None
    """Of TIES: whose sign wins, that of the larger sum or that of the larger number of sources."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Of DARE's draws: the same blend of the same sources is the same file."""
    alias: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Is moved to the new version in the same step."""
    tags: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    description: Annotated[str, Field(max_length=2000)] = ""
