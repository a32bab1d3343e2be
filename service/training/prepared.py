"""A training that is ready for its first step, with everything that a recipe says of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darkroom.types import TrainRequest
from service.engine.models import Models
from service.training.data import Curriculum, Example, Latents
from service.training.learned import Learned
from service.training.loop import Training
from service.training.recipes import TrainedModel
from service.training.text import Captions, FrozenCaptions


@dataclass(frozen=True)
class Prepared:
    """A training and what it was made of. The models bear what is learnt until `learned` is removed."""

    training: Training
    learned: Learned
    curriculum: Curriculum
    latents: Latents
    captions: Captions


def prepare(
    models: Models,
    model: TrainedModel,
    request: TrainRequest,
    examples: Sequence[Example],
    *,
    fingerprint: str,
    check: Callable[[], None] = lambda: None,
) -> Prepared:
    """Encode the pictures once, and put what is to be learnt into the models. The request's recipe is filled in.

    `check` is called before each picture, and may raise to end it.

    Raises:
        InvalidOption: the optimiser needs a package that is not installed.
    """
    recipe = request.recipe
    assert recipe.resolution is not None
    assert recipe.train_batch_size is not None
    curriculum = Curriculum(
        examples,
        resolution=recipe.resolution,
        bucket_px=model.bucket_px,
        aspect_buckets=recipe.aspect_buckets,
        random_crop=recipe.random_crop,
        random_flip=recipe.random_flip,
        repeats=recipe.repeats or balanced(examples),
        batch_size=recipe.train_batch_size,
        seed=recipe.seed,
    )
    latents = Latents(models.vae, curriculum, check)
    learned = Learned(models, request, tuple(model.linear_layers))
    try:
        captions = Captions(models, request.token or "", learned.vectors)
        training = Training(
            models,
            learned,
            curriculum,
            latents,
            captions if learned.bends_text else FrozenCaptions(captions),
            recipe,
            fingerprint=fingerprint,
        )
    except BaseException:
        learned.remove()
        raise
    return Prepared(training, learned, curriculum, latents, captions)


def balanced(examples: Sequence[Example]) -> int:
    """How often to show each picture, so that there are about as many of them as class pictures."""
    of_class = sum(example.is_class for example in examples)
    return max(1, round(of_class / max(1, len(examples) - of_class)))
