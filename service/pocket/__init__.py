"""The embedded default model: an SDXL of a few MB in the true architecture, trained on captioned shapes."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Holds `base/` and `refiner/`, each a folder that stock diffusers loads with `variant="fp16"`."""
