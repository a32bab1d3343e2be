"""Measurements of pictures: each number moves with what it is named after, and with nothing else."""

import random

import numpy as np
import pytest
from scipy import ndimage

from service.measurements.pictures import distances, measured, pixels_digest
from service.pocket.render import render
from service.pocket.world import sample_scene

MEASUREMENTS = {"sharpness", "high_frequency", "colorfulness", "contrast", "luminance", "edge_density"}


@pytest.fixture(scope="module")
def drawings() -> np.ndarray:
    """Eight faultless pictures, uint8 RGB of (8, 64, 64, 3)."""
    rng = random.Random(2)
    scenes = [sample_scene(rng, hidden=0, captioned=0) for _ in range(8)]
    return (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def grey(level: float, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def stripes(period: int, side: int = 64) -> np.ndarray:
    """Vertical sine stripes of grey, `period` pixels each."""
    wave = 127.5 + 100 * np.sin(2 * np.pi * np.arange(side) / period)
    return np.repeat(np.broadcast_to(wave, (side, side))[..., None], 3, axis=2).round().astype(np.uint8)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (sigma, sigma, 0))


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_grey_picture_has_luminance_and_nothing_else(level):
    found = measured(grey(level))
    assert found.keys() == MEASUREMENTS
    assert found.pop("luminance") == pytest.approx(level / 255)
    assert found.pop("colorfulness") == pytest.approx(0, abs=1e-9)
    assert set(found.values()) == {0.0}


def test_every_size_from_small_to_large_and_odd_is_measured():
    rng = np.random.default_rng(0)
    for shape in ((32, 32, 3), (33, 57, 3), (1024, 1024, 3)):
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
        assert all(np.isfinite(value) for value in measured(noise).values())
        assert all(np.isfinite(value) for value in distances(noise, noise[::-1]).values())


def test_a_picture_always_has_the_same_numbers(drawings):
    assert measured(drawings[0]) == measured(np.asfortranarray(drawings[0].copy()))


def test_blur_takes_sharpness_and_detail_and_leaves_the_light(drawings):
    for picture in drawings:
        before, after = measured(picture), measured(blurred(picture, 1.5))
        assert after["sharpness"] < 0.5 * before["sharpness"]
        assert after["high_frequency"] < before["high_frequency"]
        assert after["luminance"] == pytest.approx(before["luminance"], abs=0.01)


def test_sharpness_is_the_variance_of_the_laplacian_in_grey_levels():
    picture = grey(100)
    picture[32, 32] = 110
    # Of one pixel that is 10 brighter the Laplacian is -40 there and 10 at its four neighbours.
    assert measured(picture)["sharpness"] == pytest.approx((40**2 + 4 * 10**2) / 64**2)


def test_high_frequency_tells_fine_stripes_from_broad_ones():
    assert measured(stripes(3))["high_frequency"] > 0.99
    assert measured(stripes(16))["high_frequency"] < 0.01


def test_high_frequency_of_white_noise_is_the_share_of_the_spectrum_beyond_half_of_nyquist():
    noise = np.random.default_rng(1).integers(0, 256, (512, 512, 1), dtype=np.uint8).repeat(3, axis=2)
    assert measured(noise)["high_frequency"] == pytest.approx(1 - np.pi / 16, abs=0.01)


def test_contrast_is_the_standard_deviation_of_luma():
    picture = grey(0)
    picture[:, 32:] = 255
    assert measured(picture)["contrast"] == pytest.approx(0.5)


def test_colourfulness_is_that_of_hasler_and_suesstrunk():
    picture = grey(0)
    picture[:32], picture[32:] = (255, 0, 0), (0, 0, 255)
    # red - green: 255 and 0; (red + green) / 2 - blue: 127.5 and -255.
    spread, middle = np.hypot(127.5, 191.25), np.hypot(127.5, 63.75)
    assert measured(picture)["colorfulness"] == pytest.approx(spread + 0.3 * middle)


def test_edges_are_counted_on_both_sides_of_a_step_and_not_where_it_is_faint():
    step, faint = grey(100), grey(100)
    step[:, 32:], faint[:, 32:] = 150, 110
    assert measured(step)["edge_density"] == pytest.approx(2 / 64)
    assert measured(faint)["edge_density"] == 0


def test_equal_pictures_are_at_no_distance(drawings):
    for picture in (*drawings, grey(0)):
        assert distances(picture, picture.copy()) == {"ssim": 1.0, "psnr": 100.0, "perceptual_distance": 0.0}


def test_pictures_of_different_sizes_have_no_distance(drawings):
    assert distances(drawings[0], drawings[0][:32]) == {}


def test_psnr_is_in_decibels_of_the_mean_square_error():
    assert distances(grey(100), grey(110))["psnr"] == pytest.approx(20 * np.log10(255 / 10))


def test_perceptual_distance_of_two_greys_is_their_difference_of_lightness():
    # L* of sRGB grey 119 is 50.0, that of white is 100.
    assert distances(grey(119), grey(255))["perceptual_distance"] == pytest.approx(50.0, abs=0.1)


def test_perceptual_distance_sees_things_move_and_hardly_sees_them_blur(drawings):
    for picture in drawings:
        blur = distances(blurred(picture, 1.0), picture)["perceptual_distance"]
        move = distances(np.roll(picture, 12, axis=1), picture)["perceptual_distance"]
        assert move > 5 * blur
        assert blur < 2.3  # just noticeable


def test_perceptual_distance_does_not_depend_on_the_resolution(drawings):
    small, large = drawings[:2], drawings[:2].repeat(3, axis=1).repeat(3, axis=2)
    assert distances(*large)["perceptual_distance"] == pytest.approx(distances(*small)["perceptual_distance"])


def test_a_digest_is_of_the_pixels_and_of_how_they_lie(drawings):
    picture = drawings[0]
    assert pixels_digest(picture) == pixels_digest(np.asfortranarray(picture))
    assert len(bytes.fromhex(pixels_digest(picture))) == 32
    changed = picture.copy()
    changed[5, 5, 1] ^= 1
    assert pixels_digest(changed) != pixels_digest(picture)
    flat = np.arange(48, dtype=np.uint8)
    assert pixels_digest(flat.reshape(2, 8, 3)) != pixels_digest(flat.reshape(4, 4, 3))
