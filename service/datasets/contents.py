"""What a dataset consists of, and the manifest that its id is the digest of."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from darkroom.types.datasets import DatasetPicture


@dataclass(frozen=True)
class Entry:
    """One picture of a dataset that is being made."""

    file: str
    digest: str
    width: int
    height: int
    caption: str
    size_bytes: int


def digest_of(data: bytes) -> str:
    """`sha256:…` of these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def manifest(entries: Iterable[Entry]) -> bytes:
    """The contents as canonical JSON: the same pictures and captions under the same names give the same bytes."""
    rows = [
        {"file": e.file, "digest": e.digest, "width": e.width, "height": e.height, "caption": e.caption}
        for e in sorted(entries, key=lambda entry: entry.file)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def pictures_in(manifest: bytes) -> list[DatasetPicture]:
    """The pictures that a manifest names, by file."""
    return [DatasetPicture.model_validate(row) for row in json.loads(manifest)]
