"""The pocket SDXL: the true SDXL architecture in a few MB, and the code that trains it from drawn pictures.

Importing this package loads no torch. `WEIGHTS / "base"` and `WEIGHTS / "refiner"` are plain diffusers
folders.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the committed weights: `base` (StableDiffusionXLPipeline) and `refiner` (its img2img sibling)."""
