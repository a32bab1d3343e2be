"""What tests are made of: orders with every default, and the plain diffusers pipelines to hold the engine against."""

import queue
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from service.engine.conditioning import Conditioning
from service.engine.engine import Engine
from service.engine.models import Models
from service.engine.orders import Done, Failed, HandOver, Order, Progress
from service.engine.prompts import parse
from service.engine.schedulers import SCHEDULERS

FOX = "a big red circle on a blue background"


def an_order(prompt: str = FOX, negative: str | None = None, **changes: Any) -> Order:
    """A small guided order at 64 px; any field of `Order` can be changed, `hand_over` also as a bare fraction."""
    width, height = changes.pop("width", 64), changes.pop("height", 64)
    hand_over = changes.pop("hand_over", None)
    if isinstance(hand_over, float):
        hand_over = HandOver(hand_over, 6.0, 2.5)
    order = Order(
        prompt=parse(prompt),
        negative_prompt=None if negative is None else parse(negative),
        seeds=(1,),
        width=width,
        height=height,
        num_inference_steps=4,
        guidance_scale=5.0,
        scheduler="euler",
        hand_over=hand_over,
        original_size=(height, width),
        crops_coords_top_left=(0, 0),
        target_size=(height, width),
        negative_original_size=None,
        negative_crops_coords_top_left=(0, 0),
        negative_target_size=None,
    )
    return replace(order, **changes)


def run(engine: Engine, order: Order) -> Done:
    """The order's end, waited for; raises what it failed with."""
    events: queue.SimpleQueue[Progress | Done | Failed] = queue.SimpleQueue()
    engine.submit(order, events.put)
    while True:
        event = events.get(timeout=120)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            return event


class PlainDiffusers:
    """The stock pipelines over the same weights, one image at a time: what a user would write without Darkroom."""

    def __init__(self, models: Models) -> None:
        self.models = models
        scheduler = diffusers.EulerDiscreteScheduler.from_config(models.scheduler_config)
        self.base = StableDiffusionXLPipeline(
            vae=models.vae,
            text_encoder=models.text_encoder,
            text_encoder_2=models.text_encoder_2,
            tokenizer=models.tokenizer,
            tokenizer_2=models.tokenizer_2,
            unet=models.unets["base"],
            scheduler=scheduler,
            force_zeros_for_empty_prompt="base" in models.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        self.refiner = StableDiffusionXLImg2ImgPipeline(
            vae=models.vae,
            text_encoder=None,
            text_encoder_2=models.text_encoder_2,
            tokenizer=None,
            tokenizer_2=models.tokenizer_2,
            unet=models.unets["refiner"],
            scheduler=scheduler,
            force_zeros_for_empty_prompt="refiner" in models.force_zeros_for_empty_prompt,
            requires_aesthetics_score=models.requires_aesthetics_score,
            add_watermarker=False,
        )
        for pipeline in (self.base, self.refiner):
            pipeline.set_progress_bar_config(disable=True)

    def latents(self, order: Order, index: int, conditioning: Conditioning) -> torch.Tensor:
        """(1, C, h, w) of one image of the order, fed the same embeddings as the engine."""
        generator = torch.Generator("cpu").manual_seed(order.seeds[index])
        latents = self.base(
            width=order.width,
            height=order.height,
            denoising_end=order.hand_over.denoising_end if order.hand_over else None,
            target_size=order.target_size,
            **self._shared(order, "base", conditioning, generator),
        ).images
        if order.hand_over is None:
            return latents
        return self.refiner(
            image=latents,
            denoising_start=order.hand_over.denoising_end,
            target_size=order.target_size,
            aesthetic_score=order.hand_over.aesthetic_score,
            negative_aesthetic_score=order.hand_over.negative_aesthetic_score,
            **self._shared(order, "refiner", conditioning, generator),
        ).images

    def _shared(
        self, order: Order, name: str, conditioning: Conditioning, generator: torch.Generator
    ) -> dict[str, Any]:
        choice = SCHEDULERS[order.scheduler]
        pipeline = self.base if name == "base" else self.refiner
        pipeline.scheduler = getattr(diffusers, choice.class_name).from_config(
            self.models.scheduler_config, **choice.options
        )
        cond = conditioning.cond[name]
        uncond = conditioning.uncond[name] if conditioning.uncond else None
        return {
            "prompt_embeds": cond.prompt_embeds,
            "pooled_prompt_embeds": cond.pooled_prompt_embeds,
            "negative_prompt_embeds": uncond.prompt_embeds if uncond else None,
            "negative_pooled_prompt_embeds": uncond.pooled_prompt_embeds if uncond else None,
            "num_inference_steps": order.num_inference_steps,
            "guidance_scale": order.guidance_scale,
            "original_size": order.original_size,
            "crops_coords_top_left": order.crops_coords_top_left,
            "negative_original_size": order.negative_original_size,
            "negative_crops_coords_top_left": order.negative_crops_coords_top_left,
            "negative_target_size": order.negative_target_size,
            "generator": generator,
            "output_type": "latent",
        }
