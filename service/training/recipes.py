"""A recipe with every default filled in, for the kind of job and the model; and what cannot be, refused.

Where the defaults come from: of SDXL, the reference scripts of diffusers and what the trainers that people use settled
on (rate 1e-4, rank 4 to 32, batch 1 with accumulation); of a small model, sweeps with the pocket SDXL
(docs/decisions/0008).
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Final, Literal

from darkroom.types import TrainKind, TrainRecipe, TrainRequest
from darkroom.types.train import LrScheduler, TrainOptimizer
from service.engine.loras.words import is_said
from service.errors import InvalidOption

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections that the article's LoRA trained; about a quarter of the UNet's linear weights."""
BUCKET_PX: Final = 64
OPTIMIZER_PACKAGES: Final[Mapping[TrainOptimizer, str]] = {
    "adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
}


@dataclass(frozen=True)
class TrainedModel:
    """What a recipe must know of the base that is to be trained."""

    name: str
    edge: int
    """Pixels of the square that it draws by default."""
    bucket_px: int
    """Edges of pictures must be multiples of it: 64 for SDXL, less for a model whose whole picture is that large."""
    device: Literal["cpu", "cuda"]
    small: bool
    """Small enough that a step takes a fraction of a second on a CPU, like the pocket model."""
    unet_parameters: int
    linear_layers: Mapping[str, tuple[int, int]]
    """(outputs, inputs) of each of the base UNet, by their full names."""
    memory_bytes: int | None = None
    """There for a training on the device; None: it is the host's own."""
    held_bytes: int = 0
    """What a server on the device holds of it and does not move out of the way, but would under the policy `pause`."""
    is_pocket: bool = False
    """It is the embedded model, which knows its own world and nothing else."""
    beside_parameters: int = 0
    """Of everything that is on the device beside the base UNet: text encoders, VAE, refiner."""


@dataclass(frozen=True)
class _Defaults:
    max_train_steps: int
    rank: int
    learning_rate: float
    embedding_learning_rate: float
    train_batch_size: int
    num_class_images: int
    lr_scheduler: LrScheduler = "constant"
    lr_warmup_steps: int = 0


_SDXL: Final[dict[TrainKind, _Defaults]] = {
    "subject": _Defaults(1000, 16, 1e-4, 1e-3, 1, 100),
    # The article's: rank 4, 500 steps.
    "negative": _Defaults(500, 4, 1e-4, 1e-3, 1, 100),
    "embedding": _Defaults(2000, 4, 1e-4, 5e-3, 1, 100),
    "pivotal": _Defaults(1000, 16, 1e-4, 1e-3, 1, 100),
}
_SMALL: Final[dict[TrainKind, _Defaults]] = {
    "subject": _Defaults(400, 16, 4e-3, 2e-2, 8, 48, "cosine", 20),
    "negative": _Defaults(200, 8, 4e-3, 2e-2, 8, 48, "cosine", 20),
    "embedding": _Defaults(200, 4, 1e-3, 5e-2, 8, 48, "cosine", 20),
    "pivotal": _Defaults(400, 16, 4e-3, 2e-2, 8, 48, "cosine", 20),
}


def filled_in(request: TrainRequest, model: TrainedModel) -> TrainRequest:
    """The request with nothing left to default.

    Raises:
        InvalidOption: a value cannot be used with this kind, this model or this machine.
    """
    recipe = request.recipe
    defaults = (_SMALL if model.small else _SDXL)[request.kind]
    if recipe.optimizer == "prodigy":
        factor = _prodigy_factor(recipe)
        defaults = replace(defaults, learning_rate=factor, embedding_learning_rate=factor)
    _check(request, model)
    steps = recipe.max_train_steps or defaults.max_train_steps
    rank = recipe.rank or defaults.rank
    prior = (
        request.class_prompt is not None if recipe.prior_preservation is None else recipe.prior_preservation
    )
    instance_prompt = request.instance_prompt or _instance_prompt(request)
    quarter = max(1, steps // 4)
    full = recipe.model_copy(
        update={
            "max_train_steps": steps,
            "rank": rank,
            "alpha": recipe.alpha or float(rank),
            "learning_rate": recipe.learning_rate or defaults.learning_rate,
            "embedding_learning_rate": recipe.embedding_learning_rate or defaults.embedding_learning_rate,
            "train_batch_size": recipe.train_batch_size or defaults.train_batch_size,
            "gradient_checkpointing": (
                not model.small if recipe.gradient_checkpointing is None else recipe.gradient_checkpointing
            ),
            "mixed_precision": recipe.mixed_precision or ("bf16" if model.device == "cuda" else "no"),
            "resolution": recipe.resolution or model.edge,
            "prior_preservation": prior,
            "num_class_images": recipe.num_class_images or defaults.num_class_images,
            "lr_scheduler": recipe.lr_scheduler or defaults.lr_scheduler,
            "lr_warmup_steps": (
                min(defaults.lr_warmup_steps, steps // 10)
                if recipe.lr_warmup_steps is None
                else recipe.lr_warmup_steps
            ),
            "checkpoint_every": recipe.checkpoint_every or quarter,
            "sample_every": recipe.sample_every or quarter,
            "sample_prompts": (
                ((instance_prompt,) if instance_prompt else ())
                if recipe.sample_prompts is None
                else recipe.sample_prompts
            ),
        }
    )
    return request.model_copy(update={"recipe": full, "instance_prompt": instance_prompt})


def targeted_layers(targets: str | Sequence[str], layers: Collection[str]) -> tuple[str, ...]:
    """The full names of the linear layers that `targets` means: a preset, or ends of names.

    Raises:
        InvalidOption: a name is the end of no layer's.
    """
    if targets == "all-linear":
        return tuple(layers)
    ends = ATTENTION if targets == "attention" else tuple(targets)
    for place, end in enumerate(ends):
        if not any(_ends(layer, end) for layer in layers):
            tails = sorted({".".join(layer.split(".")[-n:]) for layer in layers for n in (1, 2)})
            near = difflib.get_close_matches(end, tails, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "`attention` and `all-linear` are presets"
            raise InvalidOption(
                f"no linear layer of the base UNet is called '{end}'; {hint}",
                pointer=f"/recipe/targets/{place}",
            )
    return tuple(layer for layer in layers if any(_ends(layer, end) for end in ends))


def check_installed(optimizer: TrainOptimizer) -> None:
    """Raises InvalidOption where it needs a package that is not here."""
    if not is_installed(optimizer):
        raise InvalidOption(
            f"the optimizer '{optimizer}' needs the package '{OPTIMIZER_PACKAGES[optimizer]}', which is not installed "
            "here; say `adamw`",
            pointer="/recipe/optimizer",
        )


def is_installed(optimizer: TrainOptimizer) -> bool:
    package = OPTIMIZER_PACKAGES.get(optimizer)
    return package is None or find_spec(package) is not None


def _ends(layer: str, end: str) -> bool:
    return layer == end or layer.endswith(f".{end}")


def _instance_prompt(request: TrainRequest) -> str | None:
    if request.kind == "negative":
        return "wrong"
    return f"a photo of {request.token}" if request.token else None


def _prodigy_factor(recipe: TrainRecipe) -> float:
    """Prodigy finds the rate by itself; what a recipe calls so is a factor on it, one for all that is learnt.

    Raises:
        InvalidOption: the recipe names two.
    """
    named = {
        name: rate
        for name in ("learning_rate", "text_encoder_learning_rate", "embedding_learning_rate")
        if (rate := getattr(recipe, name)) is not None
    }
    first = next(iter(named.values()), 1.0)
    for name, rate in named.items():
        if rate != first:
            raise InvalidOption(
                f"`prodigy` finds one rate for all that is learnt, and these are factors on it: {rate:g} cannot stand "
                f"beside {first:g}. Leave them out, or say the same",
                pointer=f"/recipe/{name}",
            )
    return first


def _check(request: TrainRequest, model: TrainedModel) -> None:
    recipe = request.recipe
    check_installed(recipe.optimizer)
    if recipe.mixed_precision == "fp16" and model.device != "cuda":
        raise InvalidOption(
            "fp16 is not trained on a CPU; say `bf16` or `no`", pointer="/recipe/mixed_precision"
        )
    if recipe.resolution is not None and recipe.resolution % model.bucket_px:
        raise InvalidOption(
            f"{recipe.resolution} px is no multiple of {model.bucket_px}", pointer="/recipe/resolution"
        )
    targets = () if request.kind == "embedding" else targeted_layers(recipe.targets, model.linear_layers)
    largest = max((min(model.linear_layers[layer]) for layer in targets), default=0)
    if recipe.rank is not None and targets and recipe.rank > largest:
        raise InvalidOption(
            f"a rank of {recipe.rank} is more than any of the trained layers has ({largest}); "
            "a smaller one learns all that there is",
            pointer="/recipe/rank",
        )
    _check_token(request)
    if recipe.prior_preservation and request.kind == "embedding":
        raise InvalidOption(
            "an embedding changes no weight, so there is no prior to preserve",
            pointer="/recipe/prior_preservation",
        )


def _check_token(request: TrainRequest) -> None:
    token = request.token
    if token is None or request.instance_prompt is None:
        return
    if not is_said(token, request.instance_prompt):
        raise InvalidOption(
            f"the instance prompt does not say '{token}', so its vectors would learn nothing",
            pointer="/instance_prompt",
        )
