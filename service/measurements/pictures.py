"""Numbers of one picture, and of how far it is from another.

Pictures are uint8 RGB of shape (height, width, 3). Light is luma in 0..1: Rec. 709 weights on the values as they are
stored, as screens show them. The same pixels always give the same numbers.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.color import xyz2lab
from skimage.color.colorconv import xyz_from_rgb
from skimage.metrics import structural_similarity

LUMA: Final = np.array([0.2126, 0.7152, 0.0722])
EDGE_FROM: Final = 0.05
"""Slope of luma per pixel from which on a pixel lies on an edge: a sharp step of a tenth of the range."""
SAME_PSNR_DB: Final = 100.0
GRID: Final = 16
"""Cells on each side of the coarse picture: things keep their places, outlines and textures are gone."""
_LEVELS: Final = np.arange(256) / 255
_LINEAR: Final = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)
"""sRGB's transfer function (IEC 61966-2-1), by level."""


def measured(pixels_HWC: NDArray[np.uint8]) -> dict[str, float]:
    """The picture's own numbers; all are finite, and of a flat picture all but luminance and colour are 0.

    sharpness        variance of the Laplacian of luma, in grey levels of 255, squared: steep outlines and noise
                     (Pech-Pacheco et al., ICPR 2000)
    high_frequency   share of spectral energy beyond half of the Nyquist frequency, 0..1, under a Hann window, without
                     the mean: fine detail and noise
    colorfulness     Hasler and Süsstrunk, SPIE 5007 (2003), in levels of 255: 0 grey, about 60 colourful
    contrast         root mean square of luma about its mean, 0..0.5 (Peli, JOSA A 7, 1990)
    luminance        mean luma, 0 black to 1 white
    edge_density     share of pixels where Sobel's slope is `EDGE_FROM` or more, 0..1: soft outlines count for more
    """
    luma_HW = _luma(pixels_HWC)
    return {
        "sharpness": float(ndimage.laplace(255 * luma_HW, mode="nearest").var()),
        "high_frequency": _high_frequency(luma_HW),
        "colorfulness": _colorfulness(pixels_HWC),
        "contrast": 0.0 if _is_flat(luma_HW) else float(luma_HW.std()),
        "luminance": float(luma_HW.mean()),
        "edge_density": _edge_density(luma_HW),
    }


def distances(pixels_HWC: NDArray[np.uint8], baseline_HWC: NDArray[np.uint8]) -> dict[str, float]:
    """How far the picture is from the baseline's; nothing where their sizes differ.

    ssim                  structural similarity of luma, 1 for equal pictures (Wang et al., IEEE TIP 13, 2004; windows
                          of 7 pixels)
    psnr                  peak signal-to-noise ratio over all channels in dB, `SAME_PSNR_DB` for equal pictures
    perceptual_distance   how far the composition moved: mean colour difference after both pictures are averaged to
                          `GRID` × `GRID` cells, in linear light as an eye does from afar. Unit: CIE 1976 ΔE, of which
                          about 2.3 is just noticeable (Mahy et al., 1994). Changes of details alone hardly show in it
    """
    if pixels_HWC.shape != baseline_HWC.shape:
        return {}
    return {
        "ssim": float(structural_similarity(_luma(pixels_HWC), _luma(baseline_HWC), data_range=1.0)),
        "psnr": _psnr_db(pixels_HWC, baseline_HWC),
        "perceptual_distance": float(
            np.linalg.norm(_coarse_lab(pixels_HWC) - _coarse_lab(baseline_HWC), axis=2).mean()
        ),
    }


def pixels_digest(pixels_HWC: NDArray[np.uint8]) -> str:
    """sha256 in hex of the shape and the rows of RGB bytes: equal where pictures are equal to the last bit."""
    digest = hashlib.sha256("x".join(map(str, pixels_HWC.shape)).encode())
    digest.update(np.ascontiguousarray(pixels_HWC).data)
    return digest.hexdigest()


def _luma(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    return pixels_HWC @ (LUMA / 255)


def _is_flat(luma_HW: NDArray[np.float64]) -> bool:
    """Whether nothing differs: the rounding of a mean is then no contrast, and its share of it no detail."""
    return bool(luma_HW.max() == luma_HW.min())


def _high_frequency(luma_HW: NDArray[np.float64]) -> float:
    if _is_flat(luma_HW):
        return 0.0
    height, width = luma_HW.shape
    window_HW = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    mean = (luma_HW * window_HW).sum() / window_HW.sum()
    spectrum = fft.rfft2((luma_HW - mean) * window_HW)
    energy = spectrum.real**2 + spectrum.imag**2
    # rfft2 leaves out the mirrored half; only the columns 0 and, of an even width, the last are not in it.
    energy[:, 1 : (width + 1) // 2] *= 2
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    return float(energy[frequency > 0.25].sum() / energy.sum())


def _colorfulness(pixels_HWC: NDArray[np.uint8]) -> float:
    red, green, blue = (pixels_HWC[..., channel].astype(np.float64) for channel in range(3))
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    return float(
        np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    )


def _edge_density(luma_HW: NDArray[np.float64]) -> float:
    # Sobel's kernel adds up eight slopes of a pixel.
    down, right = (ndimage.sobel(luma_HW, axis=axis, mode="nearest") / 8 for axis in (0, 1))
    return float((down * down + right * right >= EDGE_FROM**2).mean())


def _psnr_db(pixels_HWC: NDArray[np.uint8], baseline_HWC: NDArray[np.uint8]) -> float:
    error = np.square(pixels_HWC.astype(np.float64) - baseline_HWC).mean()
    return min(SAME_PSNR_DB, float(10 * np.log10(255**2 / error))) if error else SAME_PSNR_DB


def _coarse_lab(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB of the picture's means over a grid of cells, which differ by a pixel where the sides do not divide."""
    means = _LINEAR[pixels_HWC]
    for axis in (0, 1):
        side = pixels_HWC.shape[axis]
        edges = np.arange(min(GRID, side)) * side // min(GRID, side)
        widths = np.diff(edges, append=side)
        means = np.add.reduceat(means, edges, axis=axis) / np.expand_dims(widths, (1 - axis, 2))
    lab: NDArray[np.float64] = xyz2lab(means @ xyz_from_rgb.T)
    return lab
