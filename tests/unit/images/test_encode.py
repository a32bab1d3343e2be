"""Files in three formats: what they show, what they say, and what they keep to themselves."""

import json
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydantic import ValidationError

from darkroom.types import GenerateRequest, Output, Receipt
from service.images import encode, read_receipt
from service.images.recipe import parameters_text, receipt_from_xmp

FORMATS = ("png", "jpeg", "webp")
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE_TYPE = ".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
LONGEST = 4000
every_format = pytest.mark.parametrize("format", FORMATS)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def info_of(data: bytes) -> dict:
    with Image.open(BytesIO(data)) as image:
        return dict(image.info)


def xmp_of(data: bytes) -> str:
    info = info_of(data)
    return info["XML:com.adobe.xmp"] if "XML:com.adobe.xmp" in info else info["xmp"].decode()


def parameters_of(data: bytes) -> str:
    """The text where A1111 looks for it: the `parameters` chunk, or UserComment as piexif decodes it."""
    with Image.open(BytesIO(data)) as image:
        if image.format == "PNG":
            return image.info["parameters"]
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf-16-be")


@every_format
def test_the_media_type_is_that_of_the_bytes(receipt_of, photo, format):
    image = encode(photo(32, 40), Output(format=format), receipt_of())
    assert image.media_type == f"image/{format}"
    with Image.open(BytesIO(image.data)) as opened:
        assert (opened.format, opened.size, opened.mode) == (format.upper(), (40, 32), "RGB")


def test_png_is_exact_at_every_metadata_level(receipt_of, photo, pixels_in):
    pixels = photo(104, 96)
    for level in ("none", "basic", "full"):
        data = encode(pixels, Output(metadata=level), receipt_of()).data
        assert np.array_equal(pixels_in(data), pixels)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_is_heeded_and_a_good_one_stays_close_to_the_picture(receipt_of, photo, pixels_in, format):
    pixels = photo(256, 256)
    low, high = (encode(pixels, Output(format=format, quality=q), receipt_of()).data for q in (20, 95))
    assert len(low) < len(high) / 2
    assert np.abs(pixels_in(high).astype(int) - pixels).mean() < 4


@every_format
def test_metadata_none_leaves_nothing_but_pixels(receipt_of, photo, format):
    data = encode(photo(32, 32), Output(format=format, metadata="none"), receipt_of()).data
    assert set(info_of(data)) <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "loop",
        "background",
    } | {
        "timestamp",
        "duration",
    }
    for word in (b"fox", b"Steps", b"darkroom", b"Exif", b"xmp", b"iptc"):
        assert word not in data
    assert read_receipt(data) is None


@every_format
def test_metadata_basic_has_parameters_and_the_iptc_mark_and_no_receipt(receipt_of, photo, format):
    receipt = receipt_of()
    data = encode(photo(32, 32), Output(format=format, metadata="basic"), receipt).data
    assert parameters_of(data) == parameters_text(receipt)
    assert ElementTree.fromstring(xmp_of(data)).findtext(SOURCE_TYPE) == GENERATED
    assert receipt.model_fingerprint.encode() not in data
    assert read_receipt(data) is None


@every_format
def test_metadata_full_has_all_three_and_is_the_default(receipt_of, photo, format):
    receipt = receipt_of()
    data = encode(photo(32, 32), Output(format=format), receipt).data
    assert parameters_of(data) == parameters_text(receipt)
    assert ElementTree.fromstring(xmp_of(data)).findtext(SOURCE_TYPE) == GENERATED
    assert read_receipt(data) == receipt


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_user_comment_is_of_type_undefined_because_piexif_and_so_a1111_reads_no_other(
    receipt_of, photo, format
):
    data = encode(photo(32, 32), Output(format=format), receipt_of()).data
    user_comment, undefined, byte = b"\x92\x86", b"\x00\x07", b"\x00\x01"
    assert user_comment + undefined in data
    assert user_comment + byte not in data


def test_the_receipt_in_a_png_is_canonical_json(receipt_of, photo):
    receipt = receipt_of(prompt="ünï 狐")
    text = info_of(encode(photo(32, 32), Output(), receipt).data)["darkroom"]
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert ": " not in text
    assert "ünï 狐" in text


@every_format
def test_none_and_an_empty_negative_prompt_stay_different(receipt_of, photo, format):
    for negative in (None, ""):
        data = encode(photo(32, 32), Output(format=format), receipt_of(negative_prompt=negative)).data
        assert read_receipt(data).negative_prompt == negative


@every_format
@settings(max_examples=60, deadline=None)
@given(prompt=any_text, negative=any_text, model=any_text)
def test_a_receipt_of_any_text_comes_back_equal(receipt_of, photo, format, prompt, negative, model):
    receipt = receipt_of(prompt=prompt, negative_prompt=negative, model=model)
    data = encode(photo(16, 16), Output(format=format), receipt).data
    assert read_receipt(data) == receipt
    assert parameters_of(data) == parameters_text(receipt)


@every_format
@pytest.mark.parametrize("character", ["x", "&", "<", '"', "\\", "\n", "\0", "é", "狐", "🦊", "\ufffe"])
def test_the_longest_prompts_fit_whatever_they_are_made_of(receipt_of, photo, format, character):
    longest = character * LONGEST
    receipt = receipt_of(prompt=longest, negative_prompt=longest)
    data = encode(photo(16, 16), Output(format=format), receipt).data
    assert read_receipt(data) == receipt
    assert ElementTree.fromstring(xmp_of(data)).findtext(SOURCE_TYPE) == GENERATED


@every_format
def test_the_same_picture_gives_the_same_bytes(receipt_of, photo, format):
    first = encode(photo(64, 48), Output(format=format), receipt_of(versions={"a": "1", "b": "2"})).data
    again = encode(photo(64, 48), Output(format=format), receipt_of(versions={"b": "2", "a": "1"})).data
    assert first == again


def test_pixels_that_are_no_rgb_bytes_are_refused_with_what_they_are(receipt_of):
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(height, width, 3\)"):
            encode(wrong, Output(), receipt_of())


def test_half_a_surrogate_pair_is_stopped_at_the_border_because_no_file_can_hold_it():
    with pytest.raises(ValidationError):
        GenerateRequest(prompt="\ud800")
    with pytest.raises(ValidationError):
        GenerateRequest(prompt="a fox", negative_prompt="\ud800")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40), b"\xff\xd8\xff"]
)
def test_bytes_that_are_no_picture_have_no_receipt(data):
    assert read_receipt(data) is None


def test_a_picture_from_elsewhere_has_no_receipt(photo):
    for format in FORMATS:
        file = BytesIO()
        Image.fromarray(photo(8, 8)).save(file, format, xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
        assert read_receipt(file.getvalue()) is None


def test_a_newer_receipt_is_read_for_what_we_know_of_it(receipt_of):
    newer = receipt_of().model_dump(mode="json") | {"mood": "sunny"}
    assert Receipt.model_validate(newer) == receipt_of()


def test_entities_in_a_strangers_xmp_are_not_expanded(receipt_of):
    bomb = b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><x xmlns:d='urn:darkroom:1/'><d:receipt>&a;</d:receipt></x>"
    assert receipt_from_xmp(bomb) is None


@every_format
@settings(max_examples=150, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_gives_a_receipt_or_none_and_never_an_error(receipt_of, photo, format, damage):
    data = bytearray(encode(photo(16, 16), Output(format=format), receipt_of()).data)
    for place, value in damage:
        data[int(place * len(data))] = value
    for file in (bytes(data), bytes(data[: int(damage[0][0] * len(data))])):
        assert isinstance(read_receipt(file), Receipt | None)
