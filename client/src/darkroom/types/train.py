"""Train jobs on the wire: what shall be learnt and how, and what became of it."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from darkroom.types.common import Request, Response
from darkroom.types.datasets import SynthesizeRequest
from darkroom.types.errors import Problem
from darkroom.types.generate import MAX_PROMPT_CHARACTERS

TrainKind = Literal["subject", "negative", "embedding", "pivotal"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JobStage = Literal["waiting", "preparing", "training", "evaluating", "publishing", "done"]
TrainOptimizer = Literal["adamw", "adamw8bit", "prodigy"]
LrScheduler = Literal["constant", "linear", "cosine"]
TargetPreset = Literal["attention", "all-linear"]
JobEventType = Literal["state", "stage", "progress", "artifact", "log"]

MAX_TRAIN_STEPS = 100_000
MAX_SAMPLE_PROMPTS = 16

TrainName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
TrainPrompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Token = Annotated[str, Field(pattern=r"^[^\s(),]{1,64}$")]


class TrainRecipe(Request):
    """How to train. A field that is not named has the default for the kind of job and the resident model; the job
    shows the recipe with all of them filled in.
    """

    max_train_steps: Annotated[int, Field(ge=1, le=MAX_TRAIN_STEPS)] | None = None
    """Optimiser steps."""
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    alpha: Annotated[float, Field(gt=0.0, le=1024.0)] | None = None
    """The change is scaled by alpha / rank. Default: the rank, so that the scale is 1."""
    targets: TargetPreset | Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] = "attention"
    """Layers of the UNet: its attention projections (as in the article), every linear layer, or ends of names."""
    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA): direction and magnitude apart. Slower, often better at small ranks."""
    learning_rate: Rate | None = None
    text_encoder_learning_rate: Rate | None = None
    """Named: the text encoders' attention learns a LoRA as well, at this rate. Default: they do not."""
    embedding_learning_rate: Rate | None = None
    """Of the new token's vectors, where the kind has one."""
    optimizer: TrainOptimizer = "adamw"
    """`adamw8bit` needs the package bitsandbytes. `prodigy` finds its rate; those named are one factor on it (1)."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-4
    lr_scheduler: LrScheduler | None = None
    """How the rate goes after the warm-up. Default: constant, and cosine for a small model."""
    lr_warmup_steps: Annotated[int, Field(ge=0, le=MAX_TRAIN_STEPS)] | None = None
    """Steps in which the rate rises from nothing."""
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    train_batch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=128)] = 1
    gradient_checkpointing: bool | None = None
    """Trade a third of the speed for most of the activations' memory. Default: for all but small models."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Of the frozen weights and the arithmetic; what is learnt stays fp32. Default: bf16 on CUDA, else no."""
    resolution: Annotated[int, Field(ge=32, le=2048)] | None = None
    """Edge of the square whose area pictures are brought to. Default: the model's own size."""
    aspect_buckets: bool = True
    """Keep each picture's shape, as near as multiples of 64 px allow; otherwise the middle square is cut out."""
    random_crop: bool = False
    random_flip: bool = False
    """Mirror every other picture; wrong for faces with a parting and for writing."""
    repeats: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How often a pass over the data shows each picture, class pictures once. Default: so that both are in balance."""
    caption_dropout: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of pictures shown with the empty prompt."""
    snr_gamma: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    """min-SNR weighting (arXiv:2303.09556), usually 5. Default: none."""
    noise_offset: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Shift each channel's noise, usually by 0.0357, to reach darker and brighter pictures."""
    prior_preservation: bool | None = None
    """Train on pictures of the class as well, made by this very model, so that it is not forgotten. Default: yes where
    there is a `class_prompt`."""
    prior_loss_weight: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    num_class_images: Annotated[int, Field(ge=1, le=1000)] | None = None
    num_vectors: Annotated[int, Field(ge=1, le=16)] = 1
    """Of the new token, where the kind has one."""
    initializer: Annotated[str, Field(max_length=64)] = ""
    """A word that the new token begins as. Default: the average of all."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Named: publish the moving average of what was learnt."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps. Default: a quarter of all."""
    checkpoints_kept: Annotated[int, Field(ge=1, le=100)] = 10
    """What was learnt stays downloadable at this many; to go on from, only the newest is kept."""
    sample_every: Annotated[int, Field(ge=1)] | None = None
    """Steps. Default: a quarter of all."""
    sample_prompts: Annotated[tuple[TrainPrompt, ...], Field(max_length=MAX_SAMPLE_PROMPTS)] | None = None
    """Drawn at every sampling with the same seeds. Default: the instance prompt. Empty: none."""


class TrainRequest(Request):
    """A LoRA (or an embedding) to be trained and published.

    `subject`: a thing or a style from its pictures, under `instance_prompt` (Dreambooth). `negative`: the bad pictures
    are made by the service first, and what is learnt of them is the word `wrong`, for negative prompts. `embedding`:
    only the vectors of a new word (textual inversion). `pivotal`: the word's vectors and a LoRA together.
    """

    kind: TrainKind
    name: TrainName
    """Of the LoRA that is published."""
    dataset: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    """Needed, but for `negative`, which makes its own."""
    synthesis: SynthesizeRequest | None = None
    """Of `negative`, instead of a dataset: what to make. Default: the recipe `wrong`."""
    instance_prompt: TrainPrompt | None = None
    """Caption of pictures without one, and the words that call on the LoRA. Default for `negative`: `wrong`."""
    class_prompt: TrainPrompt | None = None
    """What the subject is one of, for prior preservation: `a photo of a dog`. Several, in turn, with bars between."""
    token: Token | None = None
    """The new word of `embedding` and `pivotal`; the prompts and captions contain it."""
    recipe: TrainRecipe = TrainRecipe()
    evaluate: bool = True
    """Compare checkpoints and weights on fixed seeds afterwards, publish the best, with a contact sheet."""
    alias: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Is moved to the published version in the same step."""
    tags: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    description: Annotated[str, Field(max_length=2000)] = ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.kind == "negative":
            if self.dataset is not None and self.synthesis is not None:
                raise ValueError("name a `dataset` of bad pictures or a `synthesis` of them, not both")
        elif self.synthesis is not None:
            raise ValueError("`synthesis` is for the kind `negative`")
        elif self.dataset is None:
            raise ValueError(f"the kind `{self.kind}` needs a `dataset`")
        if self.kind in ("embedding", "pivotal"):
            if self.token is None:
                raise ValueError(f"the kind `{self.kind}` needs a `token`, the word that it teaches")
        elif self.token is not None:
            raise ValueError(f"the kind `{self.kind}` has no `token`; say `instance_prompt`")
        if self.recipe.prior_preservation and self.class_prompt is None:
            raise ValueError("`prior_preservation` needs a `class_prompt`")
        return self


class TrainArtifact(Response):
    """A file that a job has made so far."""

    name: str
    """`samples/000100-0.png`, `checkpoints/000200.safetensors`, `loss.png`, `card.json`, `contact-sheet.png`, `log.txt`
    (of its processes, a moment after they have ended), …"""
    media_type: str
    size_bytes: int
    digest: str
    step: int
    created_at: datetime


class TrainJob(Response):
    """A train job as it stands."""

    id: str
    kind: TrainKind
    name: str
    state: JobState
    stage: JobStage
    step: int
    max_train_steps: int
    loss: float | None = None
    """Mean of the steps since the last report."""
    learning_rate: float | None = None
    steps_per_second: float | None = None
    eta_seconds: float | None = None
    dataset: str | None = None
    """Known from the start, or once it was made."""
    request: TrainRequest
    """As it was sent, the recipe with every default filled in."""
    lora: str | None = None
    """The ref that was published, `name@3`."""
    digest: str | None = None
    """Of the published file."""
    problem: Problem | None = None
    """Why it failed."""
    attempts: int = 0
    """How often it was begun or taken up again."""
    cancel_requested: bool = False
    artifacts: list[TrainArtifact] = Field(default_factory=list)
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class TrainJobPage(Response):
    """Some jobs, the newest first."""

    items: list[TrainJob]
    next_cursor: str = ""
    """The `cursor` of the next page; empty where this is the last one."""


class JobEvent(Response):
    """Something that happened to a job. Events are kept: a reader goes on after the last `id` that it has seen."""

    id: int
    """Counts up from 1 within the job."""
    type: JobEventType
    at: datetime
    step: int = 0
    state: JobState | None = None
    """Of `state`."""
    stage: JobStage | None = None
    """Of `stage`."""
    loss: float | None = None
    learning_rate: float | None = None
    steps_per_second: float | None = None
    eta_seconds: float | None = None
    artifact: str | None = None
    """Of `artifact`: the file's name."""
    message: str | None = None
    """Of `log`, and of `state` where a job has failed."""


class TrainEstimate(Response):
    """What a job would need, told before it starts."""

    recipe: TrainRecipe
    """Every default filled in."""
    pictures: int
    steps: int
    memory_bytes: int
    """Of the device, at the peak, by estimate."""
    memory_available_bytes: int | None = None
    """None: the device does not say."""
    fits: bool
    advice: list[str] = Field(default_factory=list)


CardVerdict = Literal["better", "level", "worse", "unmeasured"]


class CardCell(Response):
    """One checkpoint at one weight, on the study's prompts and seeds."""

    step: int
    weight: float
    measurements: dict[str, float]
    """Means over the study; `likeness`: how near the pictures of the instance prompt are to the dataset ·
    `drift`: how far pictures of other prompts moved from those of the base · `nearest`: distance of the nearest
    training picture, small where it was learnt by heart. And those of comparisons, in pairs with the base's pictures of
    other prompts: `perceptual_distance`, `ssim`, … as they are, `sharpness`, `contrast`, … as differences."""


class EvaluationCard(Response):
    """The study after a training: which checkpoint is published, and why."""

    chosen_step: int
    chosen_weight: float
    reason: str
    cells: list[CardCell]
    prompts: list[str]
    seeds: list[int]
    warnings: list[str] = Field(default_factory=list)
