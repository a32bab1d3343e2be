"""One picture that somebody sent."""

import io
import json
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

import dataset_files as files
from service.datasets import pictures
from service.datasets.pictures import UnusablePicture, checked

PICKLE = b"\x80\x04\x95" + b"\x00" * 60


def decoded(data):
    with Image.open(io.BytesIO(checked(data).png)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def refusal(data):
    with pytest.raises(UnusablePicture) as refused:
        checked(data)
    return refused.value.code


@pytest.mark.parametrize("data", [files.png(3), files.webp(3)], ids=["png", "webp"])
def test_the_pixels_are_those_that_were_sent(data):
    assert np.array_equal(decoded(data), files.pixels(3))


def test_the_same_pixels_are_the_same_bytes_whatever_file_they_came_in():
    assert checked(files.png(3)) == checked(files.webp(3))


def test_a_kept_picture_checked_again_is_itself():
    kept = checked(files.jpeg(1))
    assert checked(kept.png) == kept


def test_a_picture_is_set_upright():
    kept = checked(files.with_exif(orientation=6))
    assert (kept.width, kept.height) == (32, 64)
    upright = np.asarray(Image.open(io.BytesIO(kept.png)))
    # The camera was held so that what is on the left of the file is at the top.
    assert abs(upright[8, 16].astype(int) - files.RED).max() < 12
    assert upright[56, 16].min() > 240


def test_no_metadata_is_kept():
    for data in (files.with_exif(), files.with_text()):
        kept = Image.open(io.BytesIO(checked(data).png))
        kept.load()
        assert kept.info == {}
        assert not kept.getexif()
    assert b"somebody" not in checked(files.with_exif()).png
    assert b"GPS" not in checked(files.with_exif()).png


def test_damaged_exif_does_not_cost_the_picture():
    data = files.with_exif()
    start = data.index(b"Exif\0\0") + 6
    assert decoded(data[:start] + b"\xff" * 20 + data[start + 20 :]).shape == (32, 64, 3)


def test_what_is_transparent_becomes_white():
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (decoded(files.saved(picture)) == 255).all()
    palette = picture.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (decoded(files.saved(palette, transparency=palette.getpixel((0, 0)))) == 255).all()


def test_a_cmyk_jpeg_becomes_rgb():
    data = files.saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG")
    assert abs(decoded(data)[16, 16].astype(int) - (255, 0, 0)).max() < 6


def test_sixteen_bits_are_scaled_and_not_cut_off():
    grey = decoded(files.sixteen_bit_grey())[..., 0].astype(int).ravel()
    assert (grey[0], grey[-1]) == (0, 255)
    assert abs(grey[512] - 128) <= 1


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB under another name, with red where its green should be."""
    profile = srgb_profile().replace(b"\0s\0R\0G\0B", b"\0m\0i\0n\0e")
    return profile.replace(b"rXYZ", b"temp").replace(b"gXYZ", b"rXYZ").replace(b"temp", b"gXYZ")


def test_colours_are_brought_to_srgb():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert (
        abs(decoded(files.saved(red, icc_profile=swapped_profile()))[0, 0].astype(int) - (0, 255, 0)).max()
        < 4
    )


@pytest.mark.parametrize(
    "profile",
    [
        srgb_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        swapped_profile()[:200],
        b"none",
    ],
    ids=["srgb", "of other channels", "cut off", "nonsense"],
)
def test_a_profile_that_says_nothing_usable_changes_no_pixel(profile):
    data = files.saved(Image.fromarray(files.pixels(1)), icc_profile=profile)
    assert np.array_equal(decoded(data), files.pixels(1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind):
    assert refusal(files.animated(kind)) == "picture.animated"


def test_a_phones_second_picture_is_left_aside():
    frames = [Image.fromarray(files.pixels(seed)) for seed in range(2)]
    data = files.saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decoded(data).shape == (32, 24, 3)


@pytest.mark.parametrize(
    "data",
    [PICKLE, b"", b"GIF89a" + b"\0" * 50, b"<svg/>", json.dumps({}).encode()],
    ids=["pickle", "nothing", "gif", "svg", "json"],
)
def test_what_is_no_png_jpeg_or_webp_is_refused_by_its_bytes(data):
    assert refusal(data) == "picture.unknown"


@pytest.mark.parametrize("whole", [files.png(), files.jpeg(), files.webp()], ids=["png", "jpeg", "webp"])
def test_a_picture_that_is_cut_off_is_refused(whole):
    for share in (0.1, 0.3, 0.6, 0.9):
        assert refusal(whole[: int(len(whole) * share)]) == "picture.corrupt"


def test_a_picture_with_damaged_bytes_never_ends_in_another_error():
    rng = np.random.default_rng(0)
    for whole in (files.png(), files.jpeg(), files.webp(), files.with_exif(), files.animated("WEBP")):
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(8, len(data), 6):
                data[place] = int(rng.integers(256))
            with suppress(UnusablePicture):
                checked(bytes(data))


def test_the_size_is_bounded_before_anything_is_decoded():
    assert refusal(files.giant_header()) == "picture.too_large"
    assert refusal(files.giant_header(12_000, 12_000)) == "picture.too_large"
    assert refusal(files.giant_header(pictures.MAX_EDGE + 1, 16)) == "picture.too_large"
    assert refusal(files.png(width=1, height=1)) == "picture.too_small"
    assert refusal(files.png(width=100, height=pictures.MIN_EDGE - 1)) == "picture.too_small"
