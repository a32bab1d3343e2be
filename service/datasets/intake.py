"""The members of an upload -> pictures with captions, and a word on everything that is wrong with them."""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from darkroom.types.datasets import MAX_CAPTION_CHARACTERS, MAX_PICTURES, DatasetFault
from lora_registry.incoming import storage_errors
from service.datasets import archives, pictures
from service.datasets.archives import Member
from service.datasets.contents import Entry, digest_of
from service.datasets.errors import DatasetTooLarge, EmptyDataset, InvalidArchive, InvalidDataset
from service.datasets.pictures import Picture, UnusablePicture

Invalid = Literal["refuse", "skip"]

MAX_KEPT_BYTES: Final = 16 * 2**30
"""Of all pictures of a dataset as PNG."""
NOTES: Final = frozenset({"duplicate", "caption.alone"})
"""Faults that never refuse an upload: nothing is lost by them."""


@dataclass(frozen=True)
class _Kept:
    name: str
    digest: str
    width: int
    height: int
    start: int
    size_bytes: int


class Intake:
    """Checks members one by one and puts the pictures aside into `spool`, until all is known to be good."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._pictures: list[_Kept] = []
        self._by_digest: dict[str, _Kept] = {}
        self._captions: dict[str, tuple[str, str]] = {}
        """By the name without its ending, in one case: the member's name, and what it says."""
        self._names: set[str] = set()
        self._faults: list[DatasetFault] = []
        self._spool_bytes = 0

    def take(self, members: Iterable[Member]) -> None:
        """Look at each member.

        Raises:
            InvalidArchive, DatasetTooLarge, StorageFull, StorageUnavailable
        """
        for member in members:
            folded = member.name.casefold()
            if folded in self._names:
                self._fault(
                    member.name, "name.taken", "has the name of another member, perhaps in other case"
                )
                continue
            self._names.add(folded)
            if folded.endswith(".txt"):
                self._take_caption(member)
            else:
                self._take_picture(member)

    def entries(self, prompt: str, invalid: Invalid) -> tuple[list[Entry], list[DatasetFault]]:
        """What becomes of it all: each picture once, by name, under its caption or else `prompt`; and the faults.

        Raises:
            InvalidDataset: with `refuse`, a member cannot be used. EmptyDataset: no picture is left.
        """
        above = _common_folder([kept.name for kept in self._pictures])
        faults = list(self._faults)
        entries: list[Entry] = []
        first: dict[str, str] = {}
        used: set[str] = set()
        for kept in sorted(self._pictures, key=lambda kept: kept.name):
            stem = _stem(kept.name)
            used.add(stem)
            _, caption = self._captions.get(stem, ("", ""))
            if kept.digest in first:
                told = f"shows the very pixels of {first[kept.digest]!r}, which is kept"
                faults.append(DatasetFault(file=kept.name, code="duplicate", message=told))
                continue
            first[kept.digest] = kept.name
            entries.append(
                Entry(
                    file=kept.name.removeprefix(above),
                    digest=kept.digest,
                    width=kept.width,
                    height=kept.height,
                    caption=caption or prompt,
                    size_bytes=kept.size_bytes,
                )
            )
        for stem, (name, _) in self._captions.items():
            if stem not in used:
                told = "is a caption without a picture of the same name"
                faults.append(DatasetFault(file=name, code="caption.alone", message=told))
        faults.sort(key=lambda fault: fault.file)
        serious = [fault for fault in faults if fault.code not in NOTES]
        if serious and invalid == "refuse":
            raise InvalidDataset(serious)
        if not entries:
            raise EmptyDataset(faults)
        return entries, faults

    def png(self, digest: str) -> bytes:
        """The bytes of a picture that was put aside."""
        kept = self._by_digest[digest]
        with storage_errors():
            self._spool.seek(kept.start)
            return self._spool.read(kept.size_bytes)

    def _take_picture(self, member: Member) -> None:
        if archives.is_archive(member.data):
            self._fault(
                member.name, "archive.nested", "is an archive in the upload; send it itself, or unpack it"
            )
            return
        try:
            picture = pictures.checked(member.data)
        except UnusablePicture as exc:
            self._fault(member.name, exc.code, str(exc))
            return
        if len(self._pictures) == MAX_PICTURES:
            raise InvalidArchive("archive.too_many", f"the upload has more than {MAX_PICTURES} pictures")
        self._put_aside(member.name, picture)

    def _put_aside(self, name: str, picture: Picture) -> None:
        digest, start, size_bytes = digest_of(picture.png), self._spool_bytes, len(picture.png)
        if start + size_bytes > MAX_KEPT_BYTES:
            raise DatasetTooLarge("the dataset, its pictures as PNG,", MAX_KEPT_BYTES)
        with storage_errors():
            self._spool.seek(start)
            self._spool.write(picture.png)
        self._spool_bytes += size_bytes
        kept = _Kept(name, digest, picture.width, picture.height, start, size_bytes)
        self._pictures.append(kept)
        self._by_digest[digest] = kept

    def _take_caption(self, member: Member) -> None:
        try:
            # A byte order mark is no part of the text. Runs of white space are one space to any tokenizer.
            caption = " ".join(member.data.decode("utf-8-sig").split())
        except UnicodeDecodeError:
            self._fault(member.name, "caption.not_utf8", "is no text in UTF-8; save it in that encoding")
            return
        if len(caption) > MAX_CAPTION_CHARACTERS:
            self._fault(
                member.name, "caption.too_long", f"has more than {MAX_CAPTION_CHARACTERS} characters; cut it"
            )
        elif not caption.isprintable():
            self._fault(
                member.name, "caption.not_text", "has control characters in it; save it as plain text"
            )
        else:
            self._captions[_stem(member.name)] = (member.name, caption)

    def _fault(self, file: str, code: str, message: str) -> None:
        self._faults.append(DatasetFault(file=file, code=code, message=message))


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0].casefold()


def _common_folder(names: list[str]) -> str:
    """The folders that all names begin with, up to the last `/`."""
    folders = [name.split("/")[:-1] for name in names]
    shared: list[str] = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "".join(f"{folder}/" for folder in shared)
