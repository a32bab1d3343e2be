"""Pictures on the disk -> one archive to send, in a temporary file: the same files give the same bytes."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias, cast

from darkroom._transfers import File, opened

Pictures: TypeAlias = File | Iterable[str | PathLike[str]]
"""A folder, an archive (zip, tar, tar.gz), or the paths of pictures and captions."""

_LOOSE = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_WHEN = (1980, 1, 1, 0, 0, 0)
"""The first moment that a zip can name."""


@contextmanager
def archive_of(pictures: Pictures) -> Iterator[BinaryIO]:
    """The archive, open at its beginning: the one that was given, or one that is gone afterwards.

    Raises: `ValueError` where there is nothing to pack.
    """
    if isinstance(pictures, (str, PathLike)):
        path = Path(pictures)
        if path.is_dir():
            named = [(file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()]
        elif path.suffix.lower() in _LOOSE:
            named = [(path.name, path)]
        else:
            named = []
        if not named and path.is_dir():
            raise ValueError(f"the folder {str(path)!r} has no files in it")
        with _packed(named) if named else opened(path) as archive:
            yield archive
    elif hasattr(pictures, "read"):
        with opened(cast("BinaryIO", pictures)) as archive:
            yield archive
    else:
        paths = [Path(one) for one in pictures]
        if not paths:
            raise ValueError("no paths were given; name at least one picture")
        with _packed([(path.name, path) for path in paths]) as archive:
            yield archive


@contextmanager
def _packed(named: Iterable[tuple[str, Path]]) -> Iterator[BinaryIO]:
    """A zip of these files in the order of their names, hidden ones left out."""
    temporary: IO[bytes]
    with tempfile.TemporaryFile() as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, path in sorted(named):
                if any(part.startswith(".") for part in name.split("/")):
                    continue
                with path.open("rb") as source, archive.open(zipfile.ZipInfo(name, _WHEN), "w") as packed:
                    shutil.copyfileobj(source, packed)
        temporary.seek(0)
        yield cast("BinaryIO", temporary)
