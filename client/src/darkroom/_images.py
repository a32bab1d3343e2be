"""Pictures in the caller's hands: saved under an honest name, opened with Pillow, shown in a notebook."""

import base64
import binascii
import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from darkroom._errors import BadResponse
from darkroom.types import GeneratedImage, GenerateResponse, Receipt, Timings, TokenReport

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_SUFFIXES = {"image/png": (".png",), "image/jpeg": (".jpg", ".jpeg"), "image/webp": (".webp",)}


@dataclass(frozen=True, repr=False)
class Image:
    """One finished picture: the encoded file, and how it was made.

    >>> picture = client.generate("a fox in the snow", seed=7).image
    >>> picture
    <Image 64×64 image/png, 0.4 kB, seed 7>
    >>> picture.receipt.num_inference_steps
    50
    """

    data: bytes
    """The file, as the service encoded it: recipe included, unless `output.metadata` said otherwise."""
    media_type: str
    seed: int
    """Sent again with the same request, it gives this picture again."""
    width: int
    """Pixels."""
    height: int
    receipt: Receipt

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the file and return where. A path without a suffix gets the right one.

        Raises: `ValueError` for a suffix of another kind of file: nothing is converted here, and a JPEG
        that is called .png confuses whoever opens it.

        >>> client.generate("a fox").image.save(folder / "fox").name
        'fox.png'
        """
        path = Path(path)
        suffixes = _SUFFIXES.get(self.media_type, ("." + self.media_type.rpartition("/")[2],))
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder; name a file in it")
        if not path.suffix:
            path = path.with_name(path.name + suffixes[0])
        elif path.suffix.lower() not in suffixes:
            raise ValueError(
                f"{path.name!r} would mislabel an {self.media_type} file; end the name in {suffixes[0]}, "
                "or ask for another format with output=Output(format=…)"
            )
        path.write_bytes(self.data)
        return path

    def pil(self) -> "PillowImage":
        """The picture as a `PIL.Image.Image`, decoded.

        Raises: `ImportError` where Pillow is not installed.
        """
        try:
            import PIL.Image
        except ImportError as error:
            raise ImportError(
                "Image.pil() needs Pillow; install it with: pip install 'darkroom-client[images]'"
            ) from error
        import io

        picture = PIL.Image.open(io.BytesIO(self.data))
        picture.load()
        return picture

    def __repr__(self) -> str:
        return f"<Image {self.width}×{self.height} {self.media_type}, {_size(self.data)}, seed {self.seed}>"

    def _repr_png_(self) -> bytes | None:
        return self.data if self.media_type == "image/png" else None

    def _repr_jpeg_(self) -> bytes | None:
        return self.data if self.media_type == "image/jpeg" else None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002
        # Serves the formats that have no hook of their own, WebP above all.
        return {"text/plain": repr(self), self.media_type: self._base64()}

    def _base64(self) -> str:
        return base64.b64encode(self.data).decode()


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

    @classmethod
    def from_response(cls, response: GenerateResponse) -> "Generation":
        """The response with its base64 decoded.

        Raises: `BadResponse` where a picture is not base64.
        """
        images = tuple(_decoded(image) for image in response.images)
        return cls(response.id, response.model, images, response.timings, response.tokens)

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


def _decoded(image: GeneratedImage) -> Image:
    try:
        data = base64.b64decode(image.b64, validate=True)
    except binascii.Error as error:
        raise BadResponse(
            200, f"image {image.index} is not valid base64 ({error})", image.b64[:200]
        ) from error
    return Image(data, image.media_type, image.seed, image.width, image.height, image.receipt)


def _figure(image: Image) -> str:
    source = html.escape(f"data:{image.media_type};base64,{image._base64()}")
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img src="{source}" alt="{html.escape(image.receipt.prompt)}" style="max-width:384px">'
        f"<figcaption>seed {image.seed}</figcaption></figure>"
    )


def _size(data: bytes) -> str:
    return f"{len(data) / 1e6:.1f} MB" if len(data) >= 1e6 else f"{len(data) / 1e3:.1f} kB"
