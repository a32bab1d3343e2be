"""CPU seconds of our PNG beside Pillow's, on a megapixel that compresses like a photo.

python -m benchmarks.png [repeats]
"""

import json
import sys
import time
from collections.abc import Callable
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.png import encode_png

EDGE = 1024


def measure(repeats: int = 9) -> dict[str, Any]:
    """Medians of CPU seconds and the file sizes of each encoder, and how many times ours is faster.

    The encoders take turns, so that a change of the clock or a noisy neighbour hits all of them; ratios are
    medians over the rounds.
    """
    pixels_HWC = photo()
    encoders: dict[str, Callable[[], bytes]] = {
        "darkroom": lambda: encode_png(pixels_HWC),
        "pillow_default": lambda: pillow_png(pixels_HWC),
        "pillow_level_1": lambda: pillow_png(pixels_HWC, compress_level=1),
    }
    sizes = {name: len(encode()) for name, encode in encoders.items()}  # and warms up
    rounds = [{name: cpu_seconds(encode) for name, encode in encoders.items()} for _ in range(repeats)]
    return {
        "picture": f"{EDGE}x{EDGE} RGB, synthetic photo",
        "repeats": repeats,
        "cpu_seconds": {name: median(taken[name] for taken in rounds) for name in encoders},
        "size_bytes": sizes,
        "times_faster_than": {
            name: median(taken[name] / taken["darkroom"] for taken in rounds)
            for name in encoders
            if name != "darkroom"
        },
    }


def photo(edge: int = EDGE, seed: int = 0) -> NDArray[np.uint8]:
    """Pixels with a photo's statistics: light falling off, 1/f texture, edges of things, sensor grain.

    Photos have amplitude spectra near 1/f (Field 1987), which is what makes a PNG of one hard to deflate.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:edge, :edge] / edge
    light = np.stack([y, x, 1 - y], axis=-1) * 90
    texture = one_over_f(edge, 1.6, rng)[..., None] * 35
    tint = np.stack([one_over_f(edge, 1.8, rng) for _ in range(3)], axis=-1) * 12
    things = np.zeros((edge, edge, 3))
    for _ in range(40):
        centre_y, centre_x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.01, 0.12)
        things[np.hypot(y - centre_y, x - centre_x) < radius] = rng.uniform(-60, 60, 3)
    grain = rng.normal(0, 2, (edge, edge, 3))
    return np.clip(83 + light + texture + tint + things + grain, 0, 255).astype(np.uint8)


def one_over_f(edge: int, power: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise of unit deviation whose amplitude falls with the power of its frequency: (edge, edge)."""
    frequency = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.rfftfreq(edge)[None])
    frequency[0, 0] = 1
    spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    noise: NDArray[np.float64] = np.fft.irfft2(spectrum / frequency**power, s=(edge, edge))
    noise /= noise.std()
    return noise


def pillow_png(pixels_HWC: NDArray[np.uint8], **options: int) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG", **options)
    return file.getvalue()


def cpu_seconds(encode: Callable[[], bytes]) -> float:
    started = time.process_time()
    encode()
    return time.process_time() - started


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 9), indent=2))
