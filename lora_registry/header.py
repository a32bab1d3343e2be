"""A safetensors header, read with suspicion: bounded before it is parsed, and every byte range accounted for.

Format: eight bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes.
Source: https://huggingface.co/docs/safetensors (format).
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

from lora_registry.records import Reason

MAX_HEADER_BYTES: Final = 8 * 2**20
MAX_TENSORS: Final = 20_000
MAX_NAME_CHARACTERS: Final = 512
MAX_DIMENSIONS: Final = 8
PREFIX_BYTES: Final = 16
"""Enough of a file's beginning to tell what it is not."""

ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

_FOREIGN: Final[tuple[tuple[bytes, str, str], ...]] = (
    (rb"PK\x03\x04|PK\x05\x06", "file.pickle", "a zip archive (PyTorch's .pt, .bin and .ckpt are such)"),
    (rb"\x80[\x02-\x05]", "file.pickle", "a pickle"),
    (rb"GGUF", "file.foreign", "a GGUF file"),
    (rb"\x89HDF", "file.foreign", "an HDF5 file"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF|GIF8", "file.foreign", "a picture"),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ", "file.foreign", "a compressed archive"),
    (rb"\s*<", "file.foreign", "an HTML or XML page, perhaps an error page or a login form that was saved"),
    (rb"\s*\{", "file.foreign", "JSON text"),
    (rb"version https://", "file.foreign", "a Git LFS pointer instead of the file that it points to"),
)


class UnreadableHeader(Exception):
    """The bytes are no safetensors file, or not one that may be read. Carries the reason."""

    def __init__(self, code: str, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason = Reason(code, message, keys, len(keys))


@dataclass(frozen=True)
class Tensor:
    """One tensor: `start` and `end` are offsets into the file, not into its data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """All that a file says of itself; `data_start` is where its tensors begin."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_start: int


def check_prefix(prefix: bytes) -> int:
    """The header's length in bytes, from a file's first bytes (at least 8, better 16).

    Raises:
        UnreadableHeader: they begin something else, or the header would be too large.
    """
    if not prefix:
        raise UnreadableHeader("file.empty", "the file is empty")
    # A small safetensors file may begin with any byte, so a foreign beginning counts only where no header follows.
    looks_right = len(prefix) >= 9 and prefix[8:9] == b"{" and _length(prefix) <= MAX_HEADER_BYTES
    for pattern, code, what in _FOREIGN:
        if not looks_right and re.match(pattern, prefix):
            raise UnreadableHeader(code, f"this is {what}; only safetensors files are read here")
    if len(prefix) < 9:
        raise UnreadableHeader(
            "file.truncated", f"a file of {len(prefix)} bytes cannot hold a safetensors header"
        )
    length = _length(prefix)
    if length > MAX_HEADER_BYTES and prefix[8:9] == b"{":
        raise UnreadableHeader(
            "header.too_large",
            f"the header claims {length} bytes; {MAX_HEADER_BYTES} are the most that is read",
        )
    if not looks_right:
        raise UnreadableHeader(
            "file.foreign", "this is no safetensors file: no header follows its first eight bytes"
        )
    return length


def read_header(file: BinaryIO, size_bytes: int) -> Header:
    """The header of a file of `size_bytes`, at whose beginning `file` stands. Reads no tensor.

    Raises:
        UnreadableHeader: it breaks the format or one of the limits above.
    """
    length = check_prefix(file.read(PREFIX_BYTES))
    if 8 + length > size_bytes:
        raise UnreadableHeader(
            "file.truncated", f"the header has {length} bytes, the whole file only {size_bytes}"
        )
    file.seek(8)
    parsed = _parse(file.read(length))
    metadata = _metadata(parsed.pop("__metadata__", {}))
    if not parsed:
        raise UnreadableHeader("file.no_tensors", "the file holds no tensor")
    if len(parsed) > MAX_TENSORS:
        raise UnreadableHeader(
            "header.too_many_tensors", f"{len(parsed)} tensors; {MAX_TENSORS} are the most"
        )
    start = 8 + length
    tensors = {name: _tensor(name, entry, start) for name, entry in parsed.items()}
    _check_ranges(tensors, start, size_bytes)
    return Header(tensors, metadata, start)


def _length(prefix: bytes) -> int:
    return int(struct.unpack("<Q", prefix[:8])[0])


def _parse(text: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise UnreadableHeader("header.not_json", "the header is not JSON") from exc
    if not isinstance(parsed, dict):
        raise UnreadableHeader("header.not_json", "the header is not a JSON object")
    return parsed


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnreadableHeader("header.duplicate_key", "the header names one thing twice", (twice[:200],))
    return found


def _metadata(entry: object) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise UnreadableHeader("header.metadata", "the header's metadata is not a map of texts")
    return entry


def _tensor(name: str, entry: object, data_start: int) -> Tensor:
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        shown = ascii(name[:200])
        raise UnreadableHeader(
            "header.name", "a tensor's name is empty, too long or not plain text", (shown,)
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnreadableHeader("header.entry", "an entry lacks its dtype, shape or data_offsets", (name,))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UnreadableHeader("header.dtype", f"an unknown element type, {str(dtype)[:40]!r}", (name,))
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise UnreadableHeader("header.shape", "a shape is not a list of up to 8 whole numbers", (name,))
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UnreadableHeader("header.offsets", "offsets are not two whole numbers in order", (name,))
    if 0 in shape:
        raise UnreadableHeader("header.shape", "a tensor without a single number in it", (name,))
    if math.prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise UnreadableHeader(
            "header.size",
            f"shape {shape} of {dtype} does not fill the {offsets[1] - offsets[0]} bytes given",
            (name,),
        )
    return Tensor(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 for value in values
    )


def _check_ranges(tensors: Mapping[str, Tensor], data_start: int, size_bytes: int) -> None:
    at = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start < at:
            raise UnreadableHeader("header.overlap", "two tensors share bytes", (name,))
        if tensor.start > at:
            raise UnreadableHeader(
                "header.hole", "there are bytes before a tensor that no tensor owns", (name,)
            )
        at = tensor.end
    if at > size_bytes:
        raise UnreadableHeader("file.truncated", f"the tensors end at byte {at}, the file at {size_bytes}")
    if at < size_bytes:
        raise UnreadableHeader("header.trailing", f"{size_bytes - at} bytes follow the last tensor")
