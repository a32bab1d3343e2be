"""What a step is judged by: noise is added to latents, and the UNet is asked which noise it was.

Shapes: B rows, C latent channels, h, w latent size.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from darkroom.types import TrainRecipe


@dataclass(frozen=True)
class Noised:
    """A batch as the UNet sees it, and what it should answer."""

    latents_BChw: torch.Tensor
    timesteps_B: torch.Tensor
    target_BChw: torch.Tensor


class Objective:
    """The training loss of epsilon- or v-prediction, weighted as the recipe says."""

    def __init__(self, scheduler_config: dict[str, object], recipe: TrainRecipe) -> None:
        self._schedule = DDPMScheduler.from_config(scheduler_config)
        self._recipe = recipe
        levels = self._schedule.alphas_cumprod
        self._snr = levels / (1 - levels)

    def noised(self, latents: torch.Tensor, generator: torch.Generator) -> Noised:
        """Noise of a random strength for each row."""
        size = len(latents)
        noise = torch.randn(latents.shape, generator=generator)
        if self._recipe.noise_offset:
            shift = torch.randn(size, latents.shape[1], 1, 1, generator=generator)
            noise = noise + self._recipe.noise_offset * shift
        steps = int(self._schedule.config.num_train_timesteps)
        # One in each of B equal slices: the strengths of a batch are spread, and its gradient is less noisy.
        slices = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        timesteps = (slices * steps).long().clamp(max=steps - 1)
        if self._schedule.config.prediction_type == "v_prediction":
            target = self._schedule.get_velocity(latents, noise, timesteps)
        else:
            target = noise
        return Noised(self._schedule.add_noise(latents, noise, timesteps), timesteps, target)

    def loss(
        self, predicted: torch.Tensor, noised: Noised, weights_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch, a number, and of each row before weights, (B,)."""
        device = predicted.device
        errors = (predicted.float() - noised.target_BChw.to(device)).square().mean((1, 2, 3))
        weights = weights_B.to(device)
        if self._recipe.snr_gamma is not None:
            weights = weights * self._min_snr(noised.timesteps_B, self._recipe.snr_gamma).to(device)
        return (errors * weights).mean(), errors.detach()

    def _min_snr(self, timesteps_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights (B,) of Hang et al., arXiv:2303.09556, for what the model predicts."""
        snr = self._snr[timesteps_B]
        if self._schedule.config.prediction_type == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        return snr.clamp(max=gamma) / snr
