"""Pictures as files: saved under an honest name, opened with Pillow, shown in a notebook."""

import base64
import binascii
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom._errors import BadResponse

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_SUFFIXES = {"image/png": (".png",), "image/jpeg": (".jpg", ".jpeg"), "image/webp": (".webp",)}


@dataclass(frozen=True, repr=False)
class PictureFile:
    """One picture as an encoded file."""

    data: bytes
    """The file, as the service encoded it."""
    media_type: str

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
        return f"<{type(self).__name__} {self.media_type}, {self._size()}>"

    def _repr_png_(self) -> bytes | None:
        return self.data if self.media_type == "image/png" else None

    def _repr_jpeg_(self) -> bytes | None:
        return self.data if self.media_type == "image/jpeg" else None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002
        # Serves the formats that have no hook of their own, WebP above all.
        return {"text/plain": repr(self), self.media_type: self._base64()}

    def _base64(self) -> str:
        return base64.b64encode(self.data).decode()

    def _size(self) -> str:
        count = len(self.data)
        return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def decoded(b64: str, *, what: str) -> bytes:
    """The file that came as base64.

    Raises: `BadResponse` where it is none.
    """
    try:
        return base64.b64decode(b64, validate=True)
    except binascii.Error as error:
        raise BadResponse(200, f"{what} is not valid base64 ({error})", b64[:200]) from error
