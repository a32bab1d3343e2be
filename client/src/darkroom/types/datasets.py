"""Datasets on the wire: pictures with captions to learn from, uploaded, or made by the service itself."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from darkroom.types.common import Request, Response
from darkroom.types.generate import MAX_PROMPT_CHARACTERS

MAX_PICTURES = 10_000
MAX_CAPTION_CHARACTERS = 2000
MAX_SYNTHESIZED = 1000
"""Pictures that one synthesis may make."""

SynthesisRecipe = Literal["wrong"]
PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]


class DatasetPicture(Response):
    """One picture of a dataset."""

    file: str
    """Its name in the upload, without folders that lead to it from above."""
    digest: str
    """`sha256:…` of the bytes that are kept: the pixels that were uploaded as PNG, upright, without metadata."""
    width: int
    height: int
    caption: str
    """Empty where it came without one and no prompt was given for all."""


class DatasetFault(Response):
    """What is wrong with one member of an upload, or to be known about it."""

    file: str
    code: str
    """For programs: `picture.corrupt`, `picture.too_large`, `caption.alone`, `duplicate`, …"""
    message: str


class Dataset(Response):
    """Pictures with captions. It never changes; the same pictures and captions are the same dataset."""

    id: str
    """`sha256:…` of its contents."""
    name: str
    pictures: list[DatasetPicture]
    size_bytes: int
    """Of the pictures as they are kept."""
    faults: list[DatasetFault] = Field(default_factory=list)
    """Of the upload: members that were left out, duplicates, captions without a picture."""
    synthesis: "SynthesizeRequest | None" = None
    """How it was made, where the service made it, every default filled in."""
    created_at: datetime
    existing: bool = False
    """In the answer to an upload: this dataset was there already."""


class DatasetSummary(Response):
    """A dataset as a list shows it."""

    id: str
    name: str
    picture_count: int
    size_bytes: int
    created_at: datetime


class DatasetPage(Response):
    """Some datasets, the newest first."""

    items: list[DatasetSummary]
    next_cursor: str = ""
    """The `cursor` of the next page; empty where this is the last one."""


class SynthesisProgress(Response):
    """How far a synthesis is."""

    done: int
    """Pictures made so far, those that could not be used among them."""
    total: int


class SynthesizeRequest(Request):
    """Pictures made by the resident model: every prompt at every guidance value with every seed.

    `recipe: "wrong"` is the article's set of bad pictures: each keyword once at four pluses among all the others, at
    six guidance values; for the pocket model, its own defect words take the keywords' place. A recipe's fields can be
    overridden. Each picture has a seed of its own, drawn from `seed` and its place: a synthesis can be repeated.
    """

    recipe: SynthesisRecipe | None = None
    prompts: Annotated[tuple[PromptText, ...], Field(min_length=1, max_length=256)] | None = None
    """In the service's notation: `(blurry)++++, cropped`."""
    guidance_scales: (
        Annotated[tuple[Annotated[float, Field(ge=0.0, le=30.0)], ...], Field(min_length=1, max_length=32)]
        | None
    ) = None
    images_per_prompt: Annotated[int, Field(ge=1, le=64)] = 1
    """For each prompt and guidance value."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    """Default: 50, and 20 for the pocket model."""
    caption: Annotated[str, Field(max_length=MAX_CAPTION_CHARACTERS)] | None = None
    """Of every picture; default: the recipe's (`wrong`), or each picture's own prompt without its weights."""
    name: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _says_what_to_draw(self) -> Self:
        if self.recipe is None and self.prompts is None:
            raise ValueError("name a `recipe` or give `prompts`")
        return self
