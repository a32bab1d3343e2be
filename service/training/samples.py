"""Sample pictures during a training, drawn with the very modules that learn: nothing is loaded beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from service.engine.models import Models
from service.training.text import Captions

GUIDANCE_SCALE = 5.0


@torch.no_grad()
def sample(
    models: Models,
    captions: Captions,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int,
    edge: int,
    wait_turn: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """One uint8 picture (H, W, 3) for each prompt; the i-th always has the seed `seed + i`.

    `wait_turn` is called between steps, and may take as long as others need the device.
    """

    def between_steps(
        _pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        wait_turn()
        return tensors

    pipeline = StableDiffusionXLPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        text_encoder_2=models.text_encoder_2,
        tokenizer=models.tokenizer,
        tokenizer_2=models.tokenizer_2,
        unet=models.unets["base"],
        scheduler=EulerDiscreteScheduler.from_config(models.scheduler_config),
        force_zeros_for_empty_prompt="base" in models.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    unet, drawn = models.unets["base"], []
    was_training = unet.training
    unet.eval()
    try:
        for place, prompt in enumerate(prompts):
            embeds, pooled = captions.encode([prompt])
            picture = pipeline(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                negative_prompt_embeds=torch.zeros_like(embeds),
                negative_pooled_prompt_embeds=torch.zeros_like(pooled),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE_SCALE,
                height=edge,
                width=edge,
                generator=torch.Generator().manual_seed(seed + place),
                output_type="np",
                callback_on_step_end=between_steps,
            ).images[0]
            drawn.append((picture * 255).round().astype(np.uint8))
    finally:
        unet.train(was_training)
    return drawn
