"""`POST /v1/compare`: arms on the same prompts and seeds, and whether one of them helped."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from darkroom.types.common import Request, Response
from darkroom.types.errors import Problem
from darkroom.types.generate import GenerateRequest, PictureSettings, Prompt, Receipt, Seed
from darkroom.types.loras import LoraUse

CompareMetric = Literal[
    "sharpness",
    "high_frequency",
    "colorfulness",
    "contrast",
    "luminance",
    "edge_density",
    "prompt_adherence",
    "clip_score",
    "pocket_accuracy",
    "pocket_quality",
    "ssim",
    "psnr",
    "perceptual_distance",
]
"""The last three say how far a picture is from the baseline's of the same prompt and seed."""
ComparePreset = Literal["article", "controlled"]
RunState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
RunStage = Literal["waiting", "drawing", "measuring", "done"]
CellState = Literal["waiting", "done", "failed"]
CompareOutcome = Literal["higher", "lower", "no_difference", "identical", "too_few", "absent"]
Direction = Literal["higher", "lower"]
CompareEventType = Literal["state", "stage", "cell"]

MAX_ARMS = 64
MAX_PROMPTS = 64
MAX_SEEDS = 256
MAX_AXIS_VALUES = 32

_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
ArmName = Annotated[str, Field(min_length=1, max_length=120, pattern=_PRINTABLE)]
ComparedPrompt = Annotated[Prompt, Field(min_length=1)]


class Arm(Request):
    """One way to draw: the base request with some fields changed."""

    name: ArmName
    set: PictureSettings = PictureSettings()
    """Only the fields that are named here count; the others are the base's. Of `refiner`, too, only what is named."""
    prompt: ComparedPrompt | None = None
    """In the place of the comparison's prompts; `{prompt}` in it stands for the one that it replaces, and must be there
    where there are several."""


class SeedCount(Request):
    """Seeds that follow from a root: the first ones of a larger count are those of a smaller one."""

    count: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 8
    root: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


SEEDS_NAMED, SEEDS_COUNTED = "seeds by name", "seeds by count"
"""Which of the two kinds of `seeds` a fault is about; no part of its place."""


def _kind_of_seeds(value: Any) -> str:
    return SEEDS_COUNTED if isinstance(value, SeedCount | dict) else SEEDS_NAMED


NamedSeeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SEEDS), Tag(SEEDS_NAMED)]
Seeds = Annotated[NamedSeeds | Annotated[SeedCount, Tag(SEEDS_COUNTED)], Discriminator(_kind_of_seeds)]


class CompareRequest(Request):
    """Arms × prompts × seeds. Arms come from a `preset`, from `arms` and from `axes`, in this order.

    `article`: without and with the word in the negative prompt, and with the LoRA and the word. `controlled`: those,
    and what tells apart what they leave open: an empty negative prompt, a word that means nothing, the LoRA without
    the word, a sham of the LoRA with it (but of a DoRA, which has none), and the LoRA on one branch of the guidance
    alone.
    """

    prompts: Annotated[tuple[ComparedPrompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    seeds: Seeds = SeedCount()
    base: PictureSettings = PictureSettings()
    """What all arms have in common."""
    arms: Annotated[tuple[Arm, ...], Field(max_length=MAX_ARMS)] = ()
    preset: ComparePreset | None = None
    lora: LoraUse | None = None
    """Of a preset: the LoRA whose effect is asked for."""
    word: ComparedPrompt = "wrong"
    """Of a preset: the negative prompt that calls on it."""
    placebo: ComparedPrompt = "ohwx"
    """Of the preset `controlled`: a word that means nothing to the model."""
    axes: (
        Annotated[
            dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=MAX_AXIS_VALUES)]],
            Field(min_length=1, max_length=8),
        ]
        | None
    ) = None
    """Arms in short: values by field of the base, `{"guidance_scale": [5, 9, 13]}`, `{"refiner.denoising_end": […]}`,
    `{"loras": [[], "ink@2", {"ref": "ink@2", "weight": 0.5}]}`."""
    combine: Literal["cross", "zip"] = "cross"
    """Of several axes: every value with every other, or the first ones together, the second ones together, …"""
    baseline: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """The arm that the others are held against. Default: the first."""
    metric: CompareMetric | None = None
    """The one that decides, named before there are pictures. Without one the comparison only describes."""
    better: Direction | None = None
    """Which way of the deciding metric is the good one. Default: what the metric itself says, if it does."""
    adherence: bool = True
    """Have the resident UNet score how well each picture fits its prompt, for 8 more evaluations of it a picture."""
    name: Annotated[str, Field(max_length=200, pattern=_PRINTABLE)] = ""
    """A title for sheet and report."""
    dry_run: bool = False
    """Answer what it would cost, and begin nothing."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not (self.arms or self.preset or self.axes):
            raise ValueError("there is nothing to compare: name `arms`, a `preset` or `axes`")
        if self.preset and self.lora is None:
            raise ValueError(f"the preset `{self.preset}` needs a `lora`")
        if not self.preset and (self.lora is not None or self.model_fields_set & {"word", "placebo"}):
            raise ValueError(
                "`lora`, `word` and `placebo` are of a `preset`; say `loras` in `base` or in an arm"
            )
        if self.better and self.metric is None:
            raise ValueError("`better` is about the `metric` that decides; name one")
        if not self.axes and "combine" in self.model_fields_set:
            raise ValueError("`combine` is about `axes`; name some")
        for what, values in (("prompts", self.prompts), ("seeds", self.seeds)):
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"`{what}` has the same one twice; each pair of pictures would count twice")
        return self

    # Without a return type: pydantic would describe the request by it, in the place of its fields.
    @model_serializer(mode="wrap")
    def _as_it_was_said(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Only the fields that were named, at every depth: of an arm's `set`, no others count."""
        return _named(self, serialize(self))


def _named(value: object, written: Any) -> Any:
    """What was written of a value, without the fields that nobody named."""
    if isinstance(value, BaseModel):
        return {
            name: _named(getattr(value, name), part)
            for name, part in written.items()
            if name in value.model_fields_set
        }
    if isinstance(value, tuple):
        return [_named(part, of_it) for part, of_it in zip(value, written, strict=True)]
    return written


class PlannedArm(Response):
    """One arm as it will be drawn."""

    name: str
    settings: PictureSettings
    """Base and arm together; refs of LoRAs as they were resolved, `name@3`."""
    prompt: str | None = None


class CompareEvaluations(Response):
    """Evaluations of a UNet, two a step with guidance."""

    planned: int
    """Of pictures, what arms have in common made once."""
    naive: int
    """Of pictures, were each made by a request of its own."""
    measuring: int = 0
    """Of the prompt adherence, beside them."""


class ComparePlan(Response):
    """What a comparison comes to, told before anything is drawn."""

    model: str = ""
    """The resident one, by name."""
    arms: list[PlannedArm]
    baseline: str
    prompts: list[str]
    seeds: list[int]
    cells: int
    """arms × prompts × seeds."""
    pictures: int
    """Different ones among them: cells that would be equal to the last bit are drawn once."""
    evaluations: CompareEvaluations
    swaps: int
    """Changes of the LoRAs in force, were it alone on the device, but for scoped ones, which alternate in a step."""
    estimated_seconds: float
    """Of the device."""
    metrics: list[CompareMetric]
    """That will be measured."""
    fits: bool
    """Whether the service would take it."""


class CompareCell(Response):
    """One image of the matrix."""

    index: int
    """Arms within seeds within prompts: the cells of a row of the sheet follow each other."""
    arm: str
    prompt: str
    """The comparison's; what was drawn is in `request`."""
    seed: int
    state: CellState = "waiting"
    request: GenerateRequest
    """Sent to `/v1/generate` it gives this very picture."""
    image: str | None = None
    """The path of the PNG."""
    width: int = 0
    height: int = 0
    pixels_digest: str = ""
    """sha256 of the shape as text (`64x64x3`) and the rows of RGB bytes: equal where pictures are equal to the bit."""
    same_as: int | None = None
    """The cell whose picture this one is, where it was not drawn twice."""
    evaluations: int = 0
    """UNet evaluations that were made for this cell, and not for one before it."""
    seconds: float = 0.0
    """Of the device, for the same."""
    measurements: dict[str, float] = Field(default_factory=dict)
    """Of the picture, and its distances to the baseline's. One that has no value here could not be measured."""
    receipt: Receipt | None = None
    problem: Problem | None = None
    """Why it failed."""


class MetricInfo(Response):
    """What a measurement is."""

    metric: CompareMetric
    title: str
    """For people: `sharpness (variance of the Laplacian)`."""
    unit: str = ""
    kind: Literal["value", "distance"]
    """`value`: of one picture, to be compared pair by pair. `distance`: of a picture to the baseline's."""
    better: Direction | None = None
    """None: neither way is good by itself."""
    decides: bool = False


class CompareVerdict(Response):
    """What one metric says of one arm, from pairs of the same prompt and seed with the baseline."""

    arm: str
    metric: CompareMetric
    decides: bool
    """Whether this is the metric that was named beforehand."""
    outcome: CompareOutcome
    pairs: int
    """That both could be measured in."""
    mean_difference: float | None = None
    """Arm minus baseline; of a distance, its mean."""
    interval: tuple[float, float] | None = None
    """95 %, by bootstrap, of this arm alone."""
    corrected_interval: tuple[float, float] | None = None
    """The same with 95 % for all arms together; the outcome is read from it."""
    wins: int = 0
    losses: int = 0
    ties: int = 0
    win_rate: float | None = None
    """wins / (wins + losses)."""
    p_value: float | None = None
    """Of the sign test, two-sided."""
    corrected_p_value: float | None = None
    """The same by Holm, for the number of arms."""
    note: str
    """The finding as a sentence."""


class CompareFile(Response):
    """Something to look at, or to read on with."""

    name: str
    """`sheet.png`, `report.html`, `report.md`, `comparison.json`, `differences/3.webp`, …"""
    media_type: str
    size_bytes: int
    digest: str


class Comparison(Response):
    """A comparison as it stands."""

    id: str
    state: RunState
    stage: RunStage = "waiting"
    name: str = ""
    request: CompareRequest
    plan: ComparePlan
    done: int = 0
    """Cells that are done or have failed."""
    cells: list[CompareCell] = Field(default_factory=list)
    """Left out where comparisons are listed."""
    metrics: list[MetricInfo] = Field(default_factory=list)
    verdicts: list[CompareVerdict] = Field(default_factory=list)
    conclusion: str = ""
    """What the deciding metric says, in a sentence or two."""
    warnings: list[str] = Field(default_factory=list)
    files: list[CompareFile] = Field(default_factory=list)
    problem: Problem | None = None
    cancel_requested: bool = False
    attempts: int = 0
    """How often it was begun or taken up again."""
    model: str = ""
    """Fingerprint of the weights that it is drawn with."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ComparisonPage(Response):
    """Some comparisons, the newest first."""

    items: list[Comparison]
    next_cursor: str = ""
    """The `cursor` of the next page; empty where this is the last one."""


class CompareEvent(Response):
    """Something that happened to a comparison. Events are kept: a reader goes on after the last `id` that it knows."""

    id: int
    """Counts up from 1 within the comparison."""
    type: CompareEventType
    at: datetime
    done: int
    """Cells that were done or had failed by then."""
    total: int
    state: RunState | None = None
    """Of `state`."""
    stage: RunStage | None = None
    """Of `stage`."""
    cell: int | None = None
    """Of `cell`: the index of one that is done or has failed."""
    message: str | None = None
    """Of a `cell` or a `state` that has failed."""
