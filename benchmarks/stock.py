"""The stock diffusers pipelines, used as a careful user would: what Darkroom is measured against."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from service.engine import folders
from service.engine.conditioning import Conditioning
from service.engine.models import Models, UNetName
from service.engine.orders import Order
from service.engine.schedulers import SCHEDULERS


@dataclass
class Stock:
    """Base and refiner, sharing text encoder 2 and VAE as diffusers' documentation has it."""

    base: StableDiffusionXLPipeline
    refiner: StableDiffusionXLImg2ImgPipeline
    scheduler: str = "euler"
    """The one that both pipelines hold now."""
    _scheduler_config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._scheduler_config = dict(self.base.scheduler.config)
        for pipeline in (self.base, self.refiner):
            pipeline.set_progress_bar_config(disable=True)

    def pictures(self, order: Order, **more: Any) -> list[Image.Image]:
        """The order's images, all seeds in one call; `more` goes to both pipelines."""
        generator = [torch.Generator("cpu").manual_seed(seed) for seed in order.seeds]
        shared = self._shared(order) | {
            "prompt": order.prompt.plain,
            "num_images_per_prompt": len(order.seeds),
            "generator": generator,
        }
        pictures: list[Image.Image]
        if order.hand_over is None:
            pictures = self.base(**self._of_base(order), **shared, **more).images
            return pictures
        latents = self.base(**self._of_base(order), **shared, output_type="latent", **more).images
        pictures = self.refiner(image=latents, **self._of_refiner(order), **shared, **more).images
        return pictures

    def pictures_in_a_row(self, order: Order) -> list[Image.Image]:
        """The same, one call after another."""
        return [picture for seed in order.seeds for picture in self.pictures(replace(order, seeds=(seed,)))]

    def latents(self, order: Order, conditioning: Conditioning) -> torch.Tensor:
        """(1, C, h, w) of the order's first image, fed the engine's own embeddings."""
        generator = torch.Generator("cpu").manual_seed(order.seeds[0])
        shared = self._shared(order) | {"generator": generator, "output_type": "latent"}
        given = _embeddings("base", conditioning)
        latents: torch.Tensor = self.base(**self._of_base(order), **given, **shared).images
        if order.hand_over is not None:
            given = _embeddings("refiner", conditioning)
            latents = self.refiner(image=latents, **self._of_refiner(order), **given, **shared).images
        return latents

    def _shared(self, order: Order) -> dict[str, Any]:
        if order.scheduler != self.scheduler:
            choice = SCHEDULERS[order.scheduler]
            scheduler_class = getattr(diffusers, choice.class_name)
            for pipeline in (self.base, self.refiner):
                pipeline.scheduler = scheduler_class.from_config(self._scheduler_config, **choice.options)
            self.scheduler = order.scheduler
        return {
            "num_inference_steps": order.num_inference_steps,
            "guidance_scale": order.guidance_scale,
            "original_size": order.original_size,
            "target_size": order.target_size,
        }

    def _of_base(self, order: Order) -> dict[str, Any]:
        end = order.hand_over.denoising_end if order.hand_over else None
        return {"width": order.width, "height": order.height, "denoising_end": end}

    def _of_refiner(self, order: Order) -> dict[str, Any]:
        assert order.hand_over is not None
        return {
            "denoising_start": order.hand_over.denoising_end,
            "aesthetic_score": order.hand_over.aesthetic_score,
            "negative_aesthetic_score": order.hand_over.negative_aesthetic_score,
        }


def from_folders(base: Path, refiner: Path, *, dtype: torch.dtype, device: torch.device) -> Stock:
    """The pipelines loaded from disk, the refiner taking what it shares from the base."""
    options = {"dtype": dtype, "add_watermarker": False, "local_files_only": True}
    base_pipeline = StableDiffusionXLPipeline.from_pretrained(
        base, variant=folders.variant_of(base), **options
    )
    refiner_pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        refiner,
        variant=folders.variant_of(refiner),
        text_encoder_2=base_pipeline.text_encoder_2,
        tokenizer_2=base_pipeline.tokenizer_2,
        vae=base_pipeline.vae,
        **options,
    )
    return Stock(base_pipeline.to(device), refiner_pipeline.to(device))


def from_models(models: Models, *, unets: dict[UNetName, UNet2DConditionModel], vae: Any = None) -> Stock:
    """The pipelines over the engine's text encoders, with UNets and VAE of their own."""
    vae = models.vae if vae is None else vae

    def scheduler() -> Any:
        return diffusers.EulerDiscreteScheduler.from_config(models.scheduler_config)

    base = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=models.text_encoder,
        text_encoder_2=models.text_encoder_2,
        tokenizer=models.tokenizer,
        tokenizer_2=models.tokenizer_2,
        unet=unets["base"],
        scheduler=scheduler(),
        force_zeros_for_empty_prompt="base" in models.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    refiner = StableDiffusionXLImg2ImgPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=models.text_encoder_2,
        tokenizer=None,
        tokenizer_2=models.tokenizer_2,
        unet=unets["refiner"],
        scheduler=scheduler(),
        force_zeros_for_empty_prompt="refiner" in models.force_zeros_for_empty_prompt,
        requires_aesthetics_score=models.requires_aesthetics_score,
        add_watermarker=False,
    )
    return Stock(base, refiner)


def _embeddings(name: UNetName, conditioning: Conditioning) -> dict[str, torch.Tensor]:
    given = {
        "prompt_embeds": conditioning.cond[name].prompt_embeds,
        "pooled_prompt_embeds": conditioning.cond[name].pooled_prompt_embeds,
    }
    if conditioning.uncond is not None:
        given["negative_prompt_embeds"] = conditioning.uncond[name].prompt_embeds
        given["negative_pooled_prompt_embeds"] = conditioning.uncond[name].pooled_prompt_embeds
    return given
