"""A receipt to change, and pixels that look like a photo to an encoder."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from darkroom.types import Receipt, RefinerReceipt

Pixels = NDArray[np.uint8]

PLAIN = Receipt(
    prompt="a red fox in the snow",
    negative_prompt="blurry",
    seed=2**64 - 1,
    width=1024,
    height=768,
    num_inference_steps=50,
    base_steps=40,
    guidance_scale=7.5,
    scheduler="euler",
    refiner=RefinerReceipt(
        denoising_end=0.8, num_inference_steps=10, aesthetic_score=6.0, negative_aesthetic_score=2.5
    ),
    original_size=(768, 1024),
    crops_coords_top_left=(0, 0),
    target_size=(768, 1024),
    negative_original_size=None,
    negative_crops_coords_top_left=(0, 0),
    negative_target_size=None,
    model="sdxl",
    model_fingerprint="9f" * 32,
    versions={"torch": "2.13.0", "darkroom": "0.1.0"},
)


@pytest.fixture(scope="session")
def receipt_of() -> Callable[..., Receipt]:
    """A receipt with some fields replaced and everything checked again."""

    def build(**changes: Any) -> Receipt:
        return Receipt.model_validate(PLAIN.model_dump() | changes)

    return build


@pytest.fixture(scope="session")
def photo() -> Callable[..., Pixels]:
    """Gradients with grain: smooth enough to compress, noisy enough to be work."""

    def build(height: int, width: int, seed: int = 0) -> Pixels:
        y, x = np.mgrid[:height, :width] / max(height, width)
        light = np.stack([220 * x, 220 * y, 128 + 90 * np.sin(9 * x * y)], axis=-1)
        grain = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
        return np.clip(light + grain, 0, 255).astype(np.uint8)

    return build


@pytest.fixture(scope="session")
def pixels_in() -> Callable[[bytes], Pixels]:
    """What Pillow sees in a file."""

    def decode(data: bytes) -> Pixels:
        with Image.open(BytesIO(data)) as image:
            assert image.mode == "RGB"
            return np.asarray(image)

    return decode
