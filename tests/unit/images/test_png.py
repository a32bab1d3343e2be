"""The PNG encoder: lossless, well-formed, and cheap."""

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images.png import encode_png, text_chunk, utf8_text_chunk

edges = st.integers(1, 70)


def chunks_of(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of each chunk, its CRC checked with zlib's own."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        yield kind, data
        at += 12 + length


@settings(max_examples=60, deadline=None)
@given(height=edges, width=edges, seed=st.integers(0, 2**32))
def test_noise_of_any_size_comes_back_exactly(pixels_in, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(pixels_in(encode_png(pixels)), pixels)


def test_a_photo_comes_back_exactly(pixels_in, photo):
    pixels = photo(1024, 768)
    assert np.array_equal(pixels_in(encode_png(pixels)), pixels)


def test_extreme_steps_between_rows_wrap_around_and_come_back(pixels_in):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    assert np.array_equal(pixels_in(encode_png(stripes)), stripes)


def test_a_view_with_strides_is_encoded_as_it_looks(pixels_in, photo):
    flipped = photo(48, 40)[::-1, ::-1]
    assert np.array_equal(pixels_in(encode_png(flipped)), flipped)


def test_zlib_itself_accepts_the_deflate_stream_and_its_checksum(photo):
    kinds_and_data = list(chunks_of(encode_png(photo(37, 23))))
    assert [kind for kind, _ in kinds_and_data] == [b"IHDR", b"IDAT", b"IEND"]
    stream = kinds_and_data[1][1]
    assert int.from_bytes(stream[:2], "big") % 31 == 0
    assert len(zlib.decompress(stream)) == 37 * (1 + 3 * 23)


def test_texts_stand_before_the_pixels(photo):
    texts = [text_chunk("a", "plain\nlines"), text_chunk("b", "ünï 狐 🦊"), utf8_text_chunk("c", "plain")]
    png = encode_png(photo(8, 8), texts)
    assert [kind for kind, _ in chunks_of(png)] == [b"IHDR", b"tEXt", b"iTXt", b"iTXt", b"IDAT", b"IEND"]
    with Image.open(BytesIO(png)) as image:
        assert image.info == {"a": "plain\nlines", "b": "ünï 狐 🦊", "c": "plain"}
        image.verify()


def test_a_megapixel_costs_a_fifth_of_pillows_default_or_less(photo):
    pixels = photo(1024, 1024)

    def with_pillow() -> None:
        Image.fromarray(pixels).save(BytesIO(), "PNG")

    ours = min(cpu_seconds(lambda: encode_png(pixels)) for _ in range(3))
    theirs = min(cpu_seconds(with_pillow) for _ in range(2))
    assert ours < theirs / 5


def cpu_seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started
