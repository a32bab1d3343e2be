"""An upload taken apart: zip, tar, tar.gz or the parts of a form -> its members, one by one in memory.

An upload that is not honest (links, names that lead out of it, bombs) is refused as a whole and never in part.
Nothing is ever extracted to a path: a member's name is only a name.
"""

import gzip
import io
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from darkroom.types.datasets import MAX_PICTURES
from lora_registry.incoming import storage_errors
from service.datasets.errors import InvalidArchive

MAX_MEMBERS: Final = 2 * MAX_PICTURES + 1000
"""A caption for each picture, and folders."""
MAX_MEMBER_BYTES: Final = 64 * 2**20
MAX_CONTENT_BYTES: Final = 4 * 2**30
MAX_RATIO: Final = 100
RATIO_FROM_BYTES: Final = 4 * 2**20
"""Small members may well be compressed a hundredfold; it is large ones that make a bomb."""
MAX_NAME_CHARACTERS: Final = 255
_MAX_DIRECTORY_BYTES: Final = 8 * 2**20
"""Of a zip's list of members, which is read at once."""
_PIECE_BYTES: Final = 2**20
_BLOCK_BYTES: Final = 512
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_ZIP_STARTS: Final = (b"PK\x03\x04", b"PK\x05\x06")
_HIDDEN_FILES: Final = frozenset({"thumbs.db", "desktop.ini"})
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class Member:
    """One file of an upload. The name has `/` between folders, and leads nowhere else."""

    name: str
    data: bytes


def is_archive(data: bytes) -> bool:
    """Whether these bytes begin as a zip, gzip or tar file does."""
    return data.startswith((*_ZIP_STARTS, b"\x1f\x8b")) or data[257:262] == b"ustar"


def members(file: BinaryIO, folder: Path) -> Iterator[Member]:
    """The files in an archive, without those that systems hide. `folder` is for a temporary file without a name.

    Raises:
        InvalidArchive, StorageFull, StorageUnavailable
    """
    file.seek(0)
    beginning = file.read(_BLOCK_BYTES)
    file.seek(0)
    if beginning.startswith(_ZIP_STARTS):
        found = _of_zip(file)
    elif beginning.startswith(b"\x1f\x8b"):
        found = _of_gzip(file, folder)
    elif beginning[257:262] == b"ustar":
        found = _of_tar(file)
    else:
        raise InvalidArchive(
            "archive.unknown",
            "the body is no zip, tar or tar.gz file; put the pictures into one, or send them as multipart/form-data",
        )
    yield from found


def clean_name(name: str) -> str | None:
    """The name as it is kept, in Unicode's composed form; None for a file that a system has hidden.

    Raises:
        InvalidArchive: it leads out of the upload, or cannot be shown.
    """
    clean = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while clean.startswith("./"):
        clean = clean[2:]
    parts = clean.split("/")
    if clean.startswith("/") or _DRIVE.match(clean) or ".." in parts:
        raise InvalidArchive(
            "member.name", "would lead out of the upload; names are relative, without `..`", file=_shown(name)
        )
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or not clean.isprintable() or len(clean) > MAX_NAME_CHARACTERS:
        raise InvalidArchive(
            "member.name",
            f"is no name: 1 to {MAX_NAME_CHARACTERS} printable characters are",
            file=_shown(name),
        )
    hidden = "__MACOSX" in parts or any(part.startswith(".") for part in parts)
    return None if hidden or parts[-1].lower() in _HIDDEN_FILES else "/".join(parts)


def check_member_size(size_bytes: int, name: str) -> None:
    """Raises InvalidArchive for a member that is larger than any picture."""
    if size_bytes > MAX_MEMBER_BYTES:
        raise InvalidArchive(
            "member.too_large", f"is larger than the {MAX_MEMBER_BYTES} bytes of a member", file=_shown(name)
        )


class Counted:
    """What an upload has come to so far.

    Raises InvalidArchive with the member that goes over a limit.
    """

    def __init__(self) -> None:
        self._members, self._content_bytes = 0, 0

    def add(self, size_bytes: int) -> None:
        self._members += 1
        self._content_bytes += size_bytes
        if self._members > MAX_MEMBERS:
            raise InvalidArchive("archive.too_many", f"the upload has more than {MAX_MEMBERS} members")
        if self._content_bytes > MAX_CONTENT_BYTES:
            raise _bomb(f"holds more than {MAX_CONTENT_BYTES} bytes")


class _Bounded(io.RawIOBase):
    """A file that gives no more than a limit at once: the sizes in an archive are only its maker's claims."""

    def __init__(self, file: BinaryIO, limit_bytes: int) -> None:
        self._file, self._limit_bytes = file, limit_bytes

    def read(self, size: int = -1, /) -> bytes:
        data = (
            b"" if size > self._limit_bytes else self._file.read(size if size >= 0 else self._limit_bytes + 1)
        )
        if max(size, len(data)) > self._limit_bytes:
            raise InvalidArchive("archive.corrupt", "the archive's list of members is too large to be true")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _of_zip(file: BinaryIO) -> Iterator[Member]:
    counted = Counted()
    try:
        # It reads the whole list of members first, whose size an attacker may choose.
        with zipfile.ZipFile(_Bounded(file, max(_MAX_DIRECTORY_BYTES, _PIECE_BYTES))) as archive:
            for info in archive.infolist():
                _check_zipped(info)
                counted.add(info.file_size)
            for info in archive.infolist():
                name = None if info.is_dir() else clean_name(info.filename)
                if name is not None:
                    yield Member(name, _unzipped(archive, info))
    except (
        *_UNREADABLE,
        RuntimeError,
        OSError,
    ) as exc:  # a seek to before the file's beginning is an OSError
        raise _corrupt("zip") from exc


def _check_zipped(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    name = _shown(info.filename)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InvalidArchive("member.link", "is a link or a device; send the file itself", file=name)
    if info.flag_bits & 0x1:
        raise InvalidArchive("archive.encrypted", "is encrypted; send it without a password", file=name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidArchive(
            "archive.compression", "is compressed in a rare way; make the zip with Deflate", file=name
        )
    if not info.is_dir() or info.filename.strip("./"):
        clean_name(info.filename)
    check_member_size(info.file_size, info.filename)
    if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise _bomb(f"would grow more than {MAX_RATIO}-fold", file=name)


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile("the member has another size than the list says")
    return data


def _of_gzip(file: BinaryIO, folder: Path) -> Iterator[Member]:
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as unpacked:
        # On the disk first: a reader of tar seeks back by a byte now and then, and gzip cannot.
        size_bytes = 0
        try:
            with gzip.GzipFile(fileobj=file) as packed:
                while piece := packed.read(_PIECE_BYTES):
                    size_bytes += len(piece)
                    _check_growth(size_bytes, file.tell())
                    with storage_errors():
                        unpacked.write(piece)
        except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
            raise _corrupt("gzip") from exc
        with storage_errors():
            unpacked.seek(0)
        if unpacked.read(_BLOCK_BYTES)[257:262] != b"ustar":
            raise InvalidArchive("archive.unknown", "the gzip file holds no tar file; send a tar.gz or a zip")
        unpacked.seek(0)
        yield from _of_tar(unpacked)


def _check_growth(size_bytes: int, read_bytes: int) -> None:
    if size_bytes > MAX_CONTENT_BYTES:
        raise _bomb(f"holds more than {MAX_CONTENT_BYTES} bytes")
    if size_bytes > RATIO_FROM_BYTES and size_bytes > MAX_RATIO * max(read_bytes, 1):
        raise _bomb(f"would grow more than {MAX_RATIO}-fold")


def _of_tar(file: BinaryIO) -> Iterator[Member]:
    counted = Counted()
    try:
        with tarfile.open(fileobj=_Bounded(file, MAX_MEMBER_BYTES), mode="r:") as archive:
            while (info := archive.next()) is not None:
                counted.add(info.size)
                _check_tarred(info)
                name = None if info.isdir() else clean_name(info.name)
                if name is not None:
                    yield Member(name, _untarred(archive, info))
            _check_end(file, archive.offset)
    except _UNREADABLE as exc:
        raise _corrupt("tar") from exc


def _check_tarred(info: tarfile.TarInfo) -> None:
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise InvalidArchive(
            "member.link", "is a link or a device; send the file itself", file=_shown(info.name)
        )
    if not info.isdir() or info.name.strip("./"):
        clean_name(info.name)
    check_member_size(info.size, info.name)


def _untarred(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    member = archive.extractfile(info)
    data = b"" if member is None else member.read()
    if len(data) != info.size:
        raise tarfile.ReadError("the archive ends within a member")
    return data


def _check_end(file: BinaryIO, offset: int) -> None:
    """A tar file ends in zeros; one that was cut off between two members is otherwise as good as whole."""
    file.seek(offset)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES or any(block):
        raise tarfile.ReadError("the archive does not end where it should")


def _bomb(fact: str, *, file: str = "") -> InvalidArchive:
    return InvalidArchive("archive.bomb", fact if file else f"the archive {fact}", file=file)


def _corrupt(kind: str) -> InvalidArchive:
    return InvalidArchive("archive.corrupt", f"the {kind} file is damaged or cut off; make and send it again")


def _shown(name: str) -> str:
    return name if len(name) <= 80 else name[:79] + "…"
