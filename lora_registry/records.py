"""What the registry hands out: frozen records without behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

Component = Literal["unet", "text_encoder", "text_encoder_2"]
Verdict = Literal["accepted", "accepted_with_warnings", "refused"]
Kind = Literal["lora", "embedding", "bundle", "unknown"]
Algorithm = Literal["lora", "loha", "lokr"]
Item = TypeVar("Item")

MAX_KEYS_SHOWN = 20
"""Of the tensor names that a reason is about; `count` says how many there are."""


@dataclass(frozen=True)
class Reason:
    """Why a file was refused, or what to know about one that was accepted.

    `code` is for machines (`family.sd1`, `pair.half`, …) and stays the same; `message` is for people. `keys` are
    the first tensors that it is about, `count` how many there are (0: it is about the whole file).
    """

    code: str
    message: str
    keys: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Module:
    """One layer of the model and the tensors that a file has for it.

    `name` is the layer's name in the loaded model (for text encoders as `text_model.encoder.layers.0.…`, whether or
    not the class at hand has that first part). `tensors` maps a role to the tensor's name in the file: `down`, `up`,
    `mid`; `hada_w1_a` …; `lokr_w1` …; `alpha`; for DoRA `magnitude` (PEFT's, one per output) or `dora_scale`
    (LyCORIS': (out, 1, …) is per output, (1, in, …) per input). `rank` is 0 where nothing is decomposed (LoKr with
    two full matrices). ΔW = `scale` · (up · down, or the product that the algorithm says); the scale is alpha / rank.
    Where a file has alpha as a tensor, both hold its value only once the values were read.
    """

    component: Component
    name: str
    algorithm: Algorithm
    rank: int
    alpha: float
    scale: float
    is_conv: bool
    tensors: Mapping[str, str]

    @property
    def is_dora(self) -> bool:
        return "magnitude" in self.tensors or "dora_scale" in self.tensors


@dataclass(frozen=True)
class Embedding:
    """Learned vectors of one token for one text encoder: the tensor `key` of shape (`vectors`, width) or (width,).

    `token` is empty where the file does not say it: it is then the name that the LoRA is published under.
    """

    token: str
    component: Component
    key: str
    vectors: int


@dataclass(frozen=True)
class Inspection:
    """What intake found out about a file. A refused one has reasons, and no modules and embeddings to be used.

    `format` says how the tensors are named: `diffusers-peft`, `diffusers-legacy`, `bare-peft`, `bare-legacy`,
    `kohya-sgm`, `kohya-diffusers`, `comfy-…`, or for embeddings `learned-embeds`, `clip-l-g`, `text-encoders`,
    `bundle-emb`; both with a `+` for bundles; `unknown` where it is none. `family` is the name of the model that it
    fits, or that it was recognised as. `metadata` holds allow-listed entries only.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    kind: Kind
    format: str
    family: str
    modules: tuple[Module, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    triggers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def components(self) -> tuple[Component, ...]:
        """The parts of the model that it touches, in a fixed order."""
        order: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")
        touched = {m.component for m in self.modules} | {e.component for e in self.embeddings}
        return tuple(component for component in order if component in touched)

    @property
    def accepted(self) -> bool:
        return self.verdict != "refused"


@dataclass(frozen=True)
class RankCount:
    """How many modules of one component have this rank, alpha and algorithm."""

    component: Component
    algorithm: str
    rank: int
    alpha: float
    modules: int


@dataclass(frozen=True)
class LoraVersion:
    """One immutable publish. `digest` is `sha256:` and 64 hex digits; `ref` is what to write down.

    `auto_v2` and `auto_v3` are the hashes that people search by (10 and 12 hex digits). `algorithms` are of `lora`,
    `dora`, `locon` (LoRA of convolutions), `loha`, `lokr`. `existing` is true where a publish found the same bytes
    under the same name.
    """

    name: str
    number: int
    digest: str
    size_bytes: int
    auto_v2: str
    auto_v3: str
    kind: Kind
    format: str
    family: str
    components: tuple[Component, ...]
    algorithms: tuple[str, ...]
    ranks: tuple[RankCount, ...]
    tokens: tuple[str, ...]
    triggers: tuple[str, ...]
    tags: tuple[str, ...]
    description: str
    metadata: Mapping[str, str]
    warnings: tuple[Reason, ...]
    created_at: datetime
    existing: bool = False
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Where the bytes come from, as who made them told: JSON values. Empty where they just came in."""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class Alias:
    """A movable name of a version. `etag` changes with every move and never comes back."""

    name: str
    alias: str
    number: int
    digest: str
    etag: str
    updated_at: datetime

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.alias}"


@dataclass(frozen=True)
class Lora:
    """A name with its highest live version, how many live versions there are, and its aliases."""

    name: str
    latest: LoraVersion
    versions: int
    aliases: tuple[Alias, ...]
    created_at: datetime


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some items, and the cursor of the next page; an empty cursor says that there is none."""

    items: tuple[Item, ...]
    next_cursor: str = ""


@dataclass(frozen=True)
class GcReport:
    """What a collection removed."""

    blobs: int
    size_bytes: int
    temp_files: int


@dataclass(frozen=True)
class Damage:
    """A blob that is not what its name says. `refs` are the live versions that it breaks."""

    digest: str
    fact: Literal["missing", "corrupt"]
    refs: tuple[str, ...]


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of hashing every blob anew."""

    checked: int
    size_bytes: int
    damaged: tuple[Damage, ...]
