"""Thumbnails, difference maps and the contact sheet."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFont
from skimage.color import deltaE_cie76, rgb2lab

from comparisons import a_comparison, pictures_for
from service.reports import contact_sheet, decoded, difference_map, sheet, thumbnail
from service.reports.differences import COLOURS
from service.reports.grid import PAPER
from service.reports.lettering import wrapped


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sheet_of(comparison, pictures=None) -> np.ndarray:
    pictures = pictures_for(comparison) if pictures is None else pictures
    data = contact_sheet(comparison, {index: thumbnail(pixels) for index, pixels in pictures.items()})
    assert data.startswith(b"\x89PNG")
    return decoded(data)


def times_seen(sheet: np.ndarray, picture: np.ndarray) -> int:
    """How often the very pixels of a picture stand in the sheet."""
    height, width, _ = picture.shape
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(axis=2))
    return sum(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in corners)


def enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, 0).repeat(factor, 1)


def reduced(pixels: np.ndarray, edge: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((edge, edge), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("size", [(64, 64), (128, 32), (1, 1)])
def test_small_picture_is_kept_to_the_bit(size):
    pixels = noise(*size)
    assert np.array_equal(decoded(thumbnail(pixels)), pixels)


@pytest.mark.parametrize(
    ("size", "small"), [((1024, 512), (384, 192)), ((129, 200), (129, 200)), ((2048, 8), (384, 2))]
)
def test_large_picture_becomes_a_small_webp(size, small):
    data = thumbnail(noise(*size))
    assert Image.open(BytesIO(data)).format == "WEBP"
    assert decoded(data).shape == (*small, 3)


def test_same_difference_has_the_same_colour_in_every_picture():
    grey, lighter, other = (np.full((8, 8, 3), level, np.uint8) for level in (100, 120, 200))
    mixed = grey.copy()
    mixed[:, :4], mixed[:, 4:] = lighter[:, :4], other[:, 4:]
    alone, together = difference_map(lighter, grey), difference_map(mixed, grey)
    assert np.array_equal(alone[:, :4], together[:, :4])
    assert (difference_map(grey, grey) == COLOURS[0]).all()


def test_colour_tells_how_far_apart_two_pixels_are():
    pixels, baseline = noise(40, 40, 1), noise(40, 40, 2)
    delta_e = deltaE_cie76(rgb2lab(pixels), rgb2lab(baseline))
    level = np.array(
        [
            int(np.flatnonzero((colour == COLOURS).all(axis=1))[0])
            for colour in difference_map(pixels, baseline).reshape(-1, 3)
        ]
    ).reshape(40, 40)
    assert np.abs(level / 255 * 50 - np.minimum(delta_e, 50)).max() <= 0.25


def test_larger_differences_are_lighter_without_exception():
    lightness = rgb2lab(COLOURS / 255)[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert lightness[0] < 10
    assert lightness[-1] > 95


def test_pictures_of_different_sizes_have_no_difference_map():
    with pytest.raises(ValueError, match="64 x 32 pixels and the baseline's 64 x 64"):
        difference_map(noise(32, 64), noise(64, 64))


def test_sheet_shows_every_picture_enlarged_by_a_whole_factor():
    comparison = a_comparison(3, 2, 2)
    pictures = pictures_for(comparison)
    shown = sheet_of(comparison, pictures)
    assert [times_seen(shown, enlarged(picture, 2)) for picture in pictures.values()] == [1] * 12


def test_sheet_has_arms_as_columns_and_seeds_below_each_other():
    comparison = a_comparison(2, 1, 2)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    pictures = {i: np.full((64, 64, 3), colour, np.uint8) for i, colour in enumerate(colours)}
    shown = sheet_of(comparison, pictures)
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = [
        np.argwhere((shown == colour).all(axis=2)).mean(axis=0) for colour in colours
    ]
    assert (y0, x0, x1) == (y1, x2, x3)
    assert x1 - x0 > 128
    assert (y2, y3 - y1 > 128) == (y3, True)


def test_sheet_letterboxes_pictures_of_another_shape():
    comparison = a_comparison(2, 1, 1)
    wide, tall = noise(32, 64, 1), noise(64, 32, 2)
    shown = sheet_of(comparison, {0: wide, 1: tall})
    assert times_seen(shown, enlarged(wide, 2)) == times_seen(shown, enlarged(tall, 2)) == 1


def test_reason_of_a_failed_cell_stands_in_red_in_its_place():
    comparison = a_comparison(2, 1, 1, failed=(1,))
    shown, without = sheet_of(comparison), sheet_of(a_comparison(2, 1, 1, waiting=(1,)))
    red = (shown[..., 0].astype(int) - shown[..., 1] > 100) & (shown[..., 2] < 100)
    shown_in_red = enlarged(pictures_for(comparison)[0], 2)
    reds_of_picture = (shown_in_red[..., 0].astype(int) - shown_in_red[..., 1] > 100) & (
        shown_in_red[..., 2] < 100
    )
    assert red.sum() > reds_of_picture.sum() + 300
    assert without.shape[1] == shown.shape[1]


def test_longest_name_and_a_word_without_spaces_stay_within_their_column():
    font = ImageFont.load_default(13)
    for text in ("W" * 120, "many short words " * 7, "a-" * 60, "mixed " + "x" * 90 + " end"):
        lines = wrapped(text, 128, font)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert max(font.getlength(line) for line in lines) <= 128


def test_text_that_does_not_fit_says_how_much_is_missing():
    font, text = ImageFont.load_default(13), "word " * 200
    lines = wrapped(text, 300, font, max_lines=3)
    shown = " ".join(lines[:2])
    assert len(lines) == 3
    assert lines[2] == f"… {len(text.strip()) - len(shown) - 1} more characters"


def test_letters_that_the_font_lacks_lose_their_accents_or_become_boxes():
    font = ImageFont.load_default(13)
    assert wrapped("Ünï × 3, e\u0301t\u00e9 – ﬁne", 500, font) == ["Uni x 3, ete - fine"]
    assert wrapped("狐 🦊 \u202edrawkcab\x00", 500, font) == ["\ufffd \ufffd \ufffddrawkcab\ufffd"]


def test_strange_text_makes_no_strange_sheet():
    strange = ("狐 🦊", "\u202ereversed\x00", "W" * 120)
    shown = sheet_of(a_comparison(strange, ("\n\t", "x" * 4000, "ﷺ" * 900), (2**64 - 1,), name="🦊" * 200))
    assert shown.shape[1] < 600
    assert (shown[:, -4:] == PAPER).all(), "nothing runs off the paper"


def test_sheet_of_very_many_cells_shrinks_them_first_and_then_leaves_rows_out(monkeypatch):
    monkeypatch.setattr(sheet, "MAX_PIXELS", 4 * 6 * 128**2)
    comparison = a_comparison(4, 2, 8)
    pictures = {cell.index: noise(256, 256, cell.index) for cell in comparison.cells}
    shown = sheet_of(comparison, pictures)
    assert 4 * 128 < shown.shape[1] < 5 * 160, "four cells of 128 px and a label"
    seeds_seen = {
        (cell.prompt, cell.seed)
        for cell in comparison.cells
        if times_seen(shown, reduced(decoded(thumbnail(pictures[cell.index])), 128))
    }
    plan = comparison.plan
    assert seeds_seen == {(prompt, seed) for prompt in plan.prompts for seed in plan.seeds[:3]}
