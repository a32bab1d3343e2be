"""Finished pictures in the caller's hands, with how they were made."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from darkroom._files import PictureFile, decoded
from darkroom.types import GeneratedImage, GenerateResponse, LoraServed, Receipt, Timings, TokenReport


@dataclass(frozen=True, repr=False)
class Image(PictureFile):
    """One finished picture: the encoded file, recipe included, and how it was made.

    >>> picture = client.generate("a fox in the snow", seed=7).image
    >>> picture
    <Image 64×64 image/png, 0.4 kB, seed 7>
    >>> picture.receipt.num_inference_steps
    50
    """

    seed: int
    """Sent again with the same request, it gives this picture again."""
    width: int
    """Pixels."""
    height: int
    receipt: Receipt

    def __repr__(self) -> str:
        return f"<Image {self.width}×{self.height} {self.media_type}, {self._size()}, seed {self.seed}>"


@dataclass(frozen=True, repr=False)
class Generation(Sequence[Image]):
    """What one request gave: its pictures in order, and what they cost.

    >>> generation = client.generate("a fox in the snow", seed=7, num_images=2)
    >>> [picture.seed for picture in generation]
    [7, 8]
    >>> generation[0] is generation.images[0]
    True
    """

    id: str
    model: str
    images: tuple[Image, ...]
    timings: Timings
    """Seconds by stage."""
    tokens: TokenReport | None = None
    """Only where the request asked with `tokens=True`."""
    loras: tuple[LoraServed, ...] = ()
    """What the refs of the request meant, and the tier that each LoRA was found in."""

    @classmethod
    def from_response(cls, response: GenerateResponse) -> "Generation":
        """The response with its base64 decoded.

        Raises: `BadResponse` where a picture is not base64.
        """
        images = tuple(_image(image) for image in response.images)
        return cls(
            response.id, response.model, images, response.timings, response.tokens, tuple(response.loras)
        )

    @property
    def image(self) -> Image:
        """The only picture.

        Raises: `ValueError` where there is more than one to choose from.
        """
        if len(self.images) != 1:
            raise ValueError(
                f"this generation has {len(self)} pictures; choose one: generation[0], or use a loop"
            )
        return self.images[0]

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image | tuple[Image, ...]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        count = f"{len(self)} image" + ("" if len(self) == 1 else "s")
        return f"<Generation {self.id} of {self.model}: {count} in {self.timings.total:.1f} s>"

    def _repr_html_(self) -> str:
        return "".join(_figure(image) for image in self.images)


def _image(image: GeneratedImage) -> Image:
    data = decoded(image.b64, what=f"image {image.index}")
    return Image(data, image.media_type, image.seed, image.width, image.height, image.receipt)


def _figure(image: Image) -> str:
    source = html.escape(f"data:{image.media_type};base64,{image._base64()}")
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img src="{source}" alt="{html.escape(image.receipt.prompt)}" style="max-width:384px">'
        f"<figcaption>seed {image.seed}</figcaption></figure>"
    )
