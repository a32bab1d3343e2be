"""From latents to pixels: VAE decoding, small previews, and the test of whether a picture is one.

Shapes: B images · C latent channels · h, w latent edges · H, W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from service.engine.loop import halving
from service.engine.memory import MemoryProfile
from service.engine.models import Models
from service.errors import Defect

FLAT_LEVELS = 2
"""A picture whose lightest and darkest value, of 255, lie this close together in every channel is flat."""
BLACK_LEVEL = 4


class Decoder:
    """Makes visible what is in the latents; belongs to the engine's thread."""

    def __init__(self, models: Models, profile: MemoryProfile) -> None:
        self._models = models
        self._profile = profile
        self._preview_map = self._fit_preview_map()
        if profile.tile_vae:
            models.vae.enable_tiling()

    @torch.inference_mode()
    def decode(self, latents: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Pixels of each (1, C, h, w), all of one size, as uint8 (H, W, 3); see `defect` for those that are none.

        Not-a-number becomes zero on the way to bytes, so ask `defect` with the latents too.

        Raises:
            OutOfDeviceMemory: a single image does not fit.
        """
        pixels = latents[0].shape[-1] * latents[0].shape[-2] * self._models.vae_scale_factor**2
        at_once = max(1, self._profile.decode_pixels // pixels)
        pictures: list[np.ndarray] = []
        for start in range(0, len(latents), at_once):
            pictures += halving(latents[start : start + at_once], self._decode, what="the VAE's decoding")
        return pictures

    def _decode(self, latents: Sequence[torch.Tensor]) -> list[np.ndarray]:
        vae = self._models.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # overflows in float16
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            latents_BChw = torch.cat(list(latents)).to(vae.dtype)
            images_BCHW = vae.decode(self._unscaled(latents_BChw), return_dict=False)[0]
        finally:
            if upcast:
                vae.to(dtype=torch.float16)
        levels = (images_BCHW.float() / 2 + 0.5).clamp(0, 1) * 255
        return list(levels.round().nan_to_num(0).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())

    def _unscaled(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        config = self._models.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return latents_BChw / config.scaling_factor
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(latents_BChw)
            for values in (config.latents_mean, config.latents_std)
        )
        return latents_BChw * std / config.scaling_factor + mean

    def preview(self, latents_1Chw: torch.Tensor) -> np.ndarray:
        """A small picture of unfinished latents, one pixel a latent, as uint8 (h, w, 3); costs one small product."""
        planes_hwC = latents_1Chw[0].permute(1, 2, 0).float()
        ones = torch.ones_like(planes_hwC[..., :1])
        rgb = torch.cat([planes_hwC, ones], dim=-1) @ self._preview_map
        return (rgb.clamp(0, 1) * 255).round().nan_to_num(0).to(torch.uint8).cpu().numpy()

    @torch.inference_mode()
    def _fit_preview_map(self) -> torch.Tensor:
        """(C + 1, 3): the linear map from a latent to the mean colour that the VAE decodes it to, by least squares."""
        models = self._models
        generator = torch.Generator("cpu").manual_seed(0)
        colours = torch.randn(48, models.latent_channels, 1, 1, generator=generator)
        flat = colours.to(models.device, models.dtype).expand(-1, -1, 4, 4)
        decoded = np.stack(self._decode(flat.split(1)))
        target = torch.from_numpy(decoded).float().mean((1, 2)) / 255
        inputs = torch.cat([colours[:, :, 0, 0], torch.ones(48, 1)], dim=1)
        return torch.linalg.lstsq(inputs, target).solution.to(models.device)


def defect(pixels_HWC: np.ndarray, latents_1Chw: torch.Tensor) -> Defect | None:
    """Why this is no picture, or None if it is one."""
    if not bool(torch.isfinite(latents_1Chw).all()):
        return "nan"
    if int(pixels_HWC.max()) <= BLACK_LEVEL:
        return "black"
    low, high = pixels_HWC.min(axis=(0, 1)).astype(int), pixels_HWC.max(axis=(0, 1)).astype(int)
    if bool((high - low <= FLAT_LEVELS).all()):
        return "flat"
    return None
