"""How well a finished picture fits a prompt, by the resident base UNet's own denoising error.

The picture's latents are noised to a few levels with noise that is the same for every picture, and the UNet says twice
what noise it sees: told the prompt, and told nothing. The score is the share of the error that the prompt takes away,
(E(nothing) − E(prompt)) / E(nothing): a diffusion classifier (Li et al. 2023, arXiv:2303.16203) with the empty prompt
for the other class. No LoRA is in force meanwhile, so that every arm of a comparison has the same judge.

Its limits: it compares pictures of one prompt, not prompts; it knows what the base knows, and likes what the base
likes; it sees layout and things better than counts and letters.
"""

from typing import Final

import diffusers
import torch

from service.engine.conditioning import Conditioning
from service.engine.models import Models
from service.engine.rows import Row

LEVELS: Final = (0.2, 0.4, 0.6, 0.8)
"""Of the trained timesteps: from where details are settled to where the layout is."""
STEPS: Final = len(LEVELS)
NOISE_SEED: Final = 20_230_328


class Judgement:
    """The scoring of one picture, a level a step; `rows` and `advance` as of a trajectory."""

    def __init__(self, latents: torch.Tensor, question: Conditioning, models: Models, pixels: int) -> None:
        """`latents` (1, C, h, w) are finished ones; `question` has the prompt as cond and nothing as uncond."""
        self._latents, self._question, self._pixels = latents, question, pixels
        self._scheduler = diffusers.DDPMScheduler.from_config(dict(models.scheduler_config))
        self._generator = torch.Generator("cpu").manual_seed(NOISE_SEED)
        self._errors_nothing, self._errors_prompt = 0.0, 0.0
        self.step = 0
        self._target = latents

    @property
    def score(self) -> float:
        """The share of the error that the prompt takes away: 0 none of it, below 0 it makes things worse."""
        return (self._errors_nothing - self._errors_prompt) / max(self._errors_nothing, 1e-12)

    def rows(self, owner: object) -> list[Row]:
        """Two evaluations of the base: told nothing, told the prompt."""
        timestep = torch.tensor(round(LEVELS[self.step] * self._scheduler.config.num_train_timesteps))
        latents = self._latents.float()
        noise = torch.randn(latents.shape, generator=self._generator).to(latents.device)
        noised = self._scheduler.add_noise(latents, noise, timestep[None])
        predicts_velocity = self._scheduler.config.prediction_type == "v_prediction"
        self._target = (
            self._scheduler.get_velocity(latents, noise, timestep[None]) if predicts_velocity else noise
        )
        uncond = self._question.uncond
        assert uncond is not None
        return [
            Row("base", noised.to(self._latents.dtype), timestep, branch, self._pixels, owner=owner)
            for branch in (uncond["base"], self._question.cond["base"])
        ]

    def advance(self, predictions: list[torch.Tensor]) -> None:
        """Take the answers to `rows` in, each (1, C, h, w)."""
        nothing, prompt = (float((p.float() - self._target).square().mean()) for p in predictions)
        self._errors_nothing += nothing
        self._errors_prompt += prompt
        self.step += 1
