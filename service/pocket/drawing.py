"""Ways to make pictures: the callable that the evaluation asks for, and the stock pipelines as one."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from .config import Config


class Draw(Protocol):
    """Whatever draws one picture for each prompt and seed: a pipeline, an engine, a service."""

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str | None = None
    ) -> torch.Tensor:
        """Pictures (B, 3, 64, 64) in 0..1."""
        ...


class Pocket:
    """Base and refiner as stock diffusers runs them, in small batches, each picture from its own seed."""

    def __init__(
        self,
        base: StableDiffusionXLPipeline,
        refiner: StableDiffusionXLImg2ImgPipeline | None,
        config: Config,
        batch: int = 16,
    ) -> None:
        self.base, self.refiner, self.batch = base, refiner, batch
        self.guidance_scale, self.steps = config.guidance_scale, config.num_inference_steps

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str | None = None
    ) -> torch.Tensor:
        """The base alone."""
        return self._base(prompts, seeds, negative_prompt)

    def draw_unfinished(self, prompts: Sequence[str], seeds: Sequence[int], end: float = 0.8) -> torch.Tensor:
        """Latents of the base stopped at the share `end` of its way, (B, 4, 16, 16)."""
        return self._base(prompts, seeds, None, output_type="latent", denoising_end=end)

    def refine(
        self,
        latents: torch.Tensor,
        prompts: Sequence[str],
        seeds: Sequence[int],
        score: float = 6.0,
        start: float = 0.8,
    ) -> torch.Tensor:
        """Pictures that the refiner makes of unfinished latents, as `score` on its scale of beauty."""
        assert self.refiner is not None
        parts = [
            self.refiner(
                prompt=list(prompts[i : i + self.batch]),
                image=latents[i : i + self.batch],
                denoising_start=start,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                aesthetic_score=score,
                generator=_generators(seeds[i : i + self.batch]),
                output_type="pt",
            ).images
            for i in range(0, len(prompts), self.batch)
        ]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as they are, seen through the VAE."""
        vae = self.base.vae
        pictures = [vae.decode(z / vae.config.scaling_factor).sample for z in latents.split(self.batch)]
        return (torch.cat(pictures).float().cpu() / 2 + 0.5).clamp(0, 1)

    def draw_weighted(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """The base with prompts in compel's syntax, such as `a (small)0.3 red circle`."""
        from compel import CompelForSDXL

        compel = CompelForSDXL(self.base)
        parts = []
        for i in range(0, len(prompts), self.batch):
            said = compel(list(prompts[i : i + self.batch]))
            parts.append(
                self.base(
                    prompt_embeds=said.embeds,
                    pooled_prompt_embeds=said.pooled_embeds,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=_generators(seeds[i : i + self.batch]),
                    output_type="pt",
                ).images
            )
        return torch.cat(parts).float().cpu()

    def compel_error(self, prompt: str) -> float:
        """Largest difference between compel's embeddings of an unweighted prompt and diffusers' own."""
        from compel import CompelForSDXL

        said = CompelForSDXL(self.base)(prompt)
        embeds, _, pooled, _ = self.base.encode_prompt(prompt, do_classifier_free_guidance=False)
        return max(
            float((said.embeds - embeds).detach().abs().max()),
            float((said.pooled_embeds - pooled).detach().abs().max()),
        )

    def _base(
        self, prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str | None, **options: object
    ) -> torch.Tensor:
        options = {"output_type": "pt", **options}
        parts = []
        for i in range(0, len(prompts), self.batch):
            chunk = list(prompts[i : i + self.batch])
            parts.append(
                self.base(
                    prompt=chunk,
                    negative_prompt=None if negative_prompt is None else [negative_prompt] * len(chunk),
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=_generators(seeds[i : i + self.batch]),
                    **options,
                ).images
            )
        return torch.cat(parts).float().cpu()


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
