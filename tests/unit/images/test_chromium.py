"""Chromium shows the pixels that Pillow reads."""

import base64
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chromium import CHROMIUM, QUIET
from darkroom.types import Output
from service.images import encode

# All of it inside the load event, which comes after the images and before the dump; promises may come later.
PAGE = """<!doctype html><meta charset="utf-8"><title>pixels</title><body>IMAGES<script>
addEventListener('load', () => {
  for (const image of document.querySelectorAll('img')) {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const hex = Array.from(rgba, byte => byte.toString(16).padStart(2, '0')).join('');
    const line = document.createElement('pre');
    line.textContent = `${canvas.height} ${canvas.width} ${hex}`;
    document.body.append(line);
  }
});
</script>"""
LOSSY_TOLERANCE = 2
"""Levels of 255. Debian's Chromium 156 and Pillow 13 agree exactly, but JPEG and WebP let decoders round
differently, and another build of either may."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path to show pictures in")


def shown_by_chromium(folder: Path, sources: list[str]) -> list[NDArray[np.uint8]]:
    """RGB of each image as drawn on a canvas, all from one start of the browser."""
    page = folder / "page.html"
    page.write_text(PAGE.replace("IMAGES", "".join(f'<img src="{source}">' for source in sources)))
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = []
    for height, width, rgba in re.findall(r"<pre>(\d+) (\d+) ([0-9a-f]+)</pre>", dom):
        pixels = np.frombuffer(bytes.fromhex(rgba), np.uint8).reshape(int(height), int(width), 4)
        assert (pixels[..., 3] == 255).all()
        shown.append(pixels[..., :3])
    assert len(shown) == len(sources), dom[-500:]
    return shown


def test_chromium_and_pillow_decode_the_same_pixels(tmp_path, receipt_of, photo, pixels_in):
    orders = [
        (photo(1, 1), Output()),
        (photo(37, 23), Output(metadata="none")),
        (photo(256, 192), Output()),
        (photo(256, 192), Output(format="jpeg", quality=90)),
        (photo(256, 192), Output(format="webp", quality=90)),
    ]
    images = [encode(pixels, output, receipt_of(prompt="ünï <狐>\0\n")) for pixels, output in orders]
    sources = [f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}" for image in images]
    for (pixels, output), image, shown in zip(
        orders, images, shown_by_chromium(tmp_path, sources), strict=True
    ):
        if output.format == "png":
            assert np.array_equal(shown, pixels)
        else:
            assert np.abs(shown.astype(int) - pixels_in(image.data)).max() <= LOSSY_TOLERANCE
