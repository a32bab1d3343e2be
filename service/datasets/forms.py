"""The parts of a multipart/form-data body as members of an upload. The body is on the disk; a part is in memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.datasets.archives import Counted, Member, check_member_size, clean_name
from service.datasets.errors import InvalidArchive

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_BOUNDARY_BYTES: Final = 70
"""As RFC 2046 has it."""
_PIECE_BYTES: Final = 2**18


def boundary_of(content_type: str) -> bytes | None:
    """The boundary, where this is the type of a form; empty where it names none. None: this is no form."""
    kind, options = parse_options_header(content_type)
    if kind.lower() != b"multipart/form-data":
        return None
    boundary = options.get(b"boundary", b"")
    return boundary if len(boundary) <= MAX_BOUNDARY_BYTES else b""


def parts(file: BinaryIO, boundary: bytes) -> Iterator[Member]:
    """The files of a form, without those that systems hide.

    Raises:
        InvalidArchive
    """
    file.seek(0)
    collected = _Parts()
    parser = MultipartParser(boundary, collected.callbacks())
    try:
        while piece := file.read(_PIECE_BYTES):
            parser.write(piece)
            yield from collected.taken()
        parser.finalize()
    except FormParserError as exc:
        raise _corrupt() from exc
    if not collected.ended:
        raise _corrupt()


class _Parts:
    """What the parser tells, put together."""

    def __init__(self) -> None:
        self.ended = False
        self._counted = Counted()
        self._done: list[Member] = []
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = b"", b""
        self._name: str | None = None
        self._data = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def taken(self) -> list[Member]:
        done, self._done = self._done, []
        return done

    def _begin(self) -> None:
        self._headers = {}
        self._field = self._value = b""
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        if not name:
            field = options.get(b"name", b"").decode("utf-8", "replace")[:80]
            raise InvalidArchive(
                "form.field",
                "is a field of the form and no file; options go into the query of the URL",
                file=field,
            )
        self._name = clean_name(name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._data += data[start:end]
            check_member_size(len(self._data), self._name)

    def _part_end(self) -> None:
        self._counted.add(len(self._data))
        if self._name is not None:
            self._done.append(Member(self._name, bytes(self._data)))
        self._data = bytearray()

    def _end(self) -> None:
        self.ended = True


def _corrupt() -> InvalidArchive:
    return InvalidArchive("archive.corrupt", "the form is damaged or cut off; send it again")
