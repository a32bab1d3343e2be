"""Where two pictures differ, and how visibly: a heat map on a scale that is the same for every pair."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

SCALE_DELTA_E: Final = 50.0
"""What has the last colour, and anything above it. About 2 is just visible; black and white are 100 apart."""
ANCHORS_LAB: Final = (
    (8.0, 4.0, -10.0),
    (26.0, 26.0, -48.0),
    (44.0, 56.0, -22.0),
    (62.0, 52.0, 34.0),
    (80.0, 14.0, 66.0),
    (97.0, -4.0, 22.0),
)
"""Night blue, violet, magenta, orange, yellow, cream: lightness climbs evenly, so that order shows without hue."""


def difference_map(pixels_HWC: NDArray[np.uint8], baseline_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The perceptual difference of each pixel as a colour, uint8 RGB of the pictures' size.

    The difference is CIE 1976 ΔE, the distance in CIELAB, from 0 (night blue) to 50 and more (cream). Raises
    ValueError where the sizes differ.
    """
    if pixels_HWC.shape != baseline_HWC.shape:
        (height, width), (its_height, its_width) = pixels_HWC.shape[:2], baseline_HWC.shape[:2]
        raise ValueError(
            f"the picture has {width} x {height} pixels and the baseline's {its_width} x {its_height}; "
            "only pictures of one size have a difference map"
        )
    differs_HW = (pixels_HWC != baseline_HWC).any(axis=2)
    levels_HW = np.zeros(differs_HW.shape, np.uint8)
    delta_e = np.linalg.norm(_lab(pixels_HWC[differs_HW]) - _lab(baseline_HWC[differs_HW]), axis=1)
    levels_HW[differs_HW] = np.clip(delta_e * (255 / SCALE_DELTA_E), 0, 255).round()
    return COLOURS[levels_HW]


def _lab(pixels_NC: NDArray[np.uint8]) -> NDArray[np.float32]:
    # float32 stays float32 in scikit-image, and takes half of the time.
    lab: NDArray[np.float32] = rgb2lab(pixels_NC.astype(np.float32) / 255)
    return lab


def _colours() -> NDArray[np.uint8]:
    """256 colours, interpolated in CIELAB: equal steps of difference look like equal steps of colour."""
    places = np.linspace(0, len(ANCHORS_LAB) - 1, 256)
    anchors = np.array(ANCHORS_LAB)
    lab = np.stack([np.interp(places, range(len(anchors)), anchors[:, i]) for i in range(3)], axis=1)
    return (lab2rgb(lab) * 255).round().astype(np.uint8)


COLOURS: Final = _colours()
"""The colour of each level, (256, 3) uint8 RGB; the last one stands for 50 and more."""
