"""How much may share the device at once, by the size of the card."""

from dataclasses import dataclass

import torch

_MEGAPIXEL = 1024 * 1024


@dataclass(frozen=True)
class MemoryProfile:
    """Bounds on one forward pass, in pixels of the final images (activations grow with them).

    `group_pixels` bounds the rows of a UNet pass, `decode_pixels` the images of a VAE pass; a single row or
    image is always let through. `tile_vae` decodes images that are larger than the model's own size in overlapping
    tiles, which changes them faintly where tiles meet.
    """

    name: str
    group_pixels: int
    decode_pixels: int
    tile_vae: bool
    pristine_on_host: bool = False
    """Keep the pristine copy of what LoRAs bend (1.9 GB for SDXL's attention, 4.5 GB for all linear layers, in float16)
    in the host's memory: a swap then takes that much longer as the bus needs to bring it back."""


# Estimates: about 0.35 GB of activations a row and 3.5 GB a decoded image at 1024 px in float16, beside 11.5 GB
# of resident weights. A pass that does not fit all the same is split (loop.py), so they need not be exact.
PROFILES = {
    "16": MemoryProfile("16", 2 * _MEGAPIXEL, _MEGAPIXEL // 4, tile_vae=True, pristine_on_host=True),
    "24": MemoryProfile("24", 8 * _MEGAPIXEL, _MEGAPIXEL, tile_vae=False),
    "80": MemoryProfile("80", 32 * _MEGAPIXEL, 8 * _MEGAPIXEL, tile_vae=False),
}


def profile_for(setting: str, device: torch.device) -> MemoryProfile:
    """The profile that the setting names; `auto` takes the largest that the device has room for."""
    if setting != "auto":
        return PROFILES[setting]
    if device.type != "cuda":
        return PROFILES["24"]
    total_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
    return PROFILES["80" if total_gb > 60 else "24" if total_gb > 20 else "16"]
