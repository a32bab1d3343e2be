"""A LoRA made by hand: "red becomes blue", a page of plain PyTorch, with no pictures but those the world draws.

The base model is its own teacher. What it makes of "a blue star" is what it shall make of "a red star" once low-rank
factors are added to its cross-attention; prompts without red keep their meaning. Nothing else is trained.

`python -m examples.handmade OUT.safetensors`

Shapes: C the colours that red is taught to mean, N scenes, B rows of a step; latents (B, 4, 16, 16).
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save

from service.engine.folders import variant_of
from service.pocket import WEIGHTS
from service.pocket.render import SIDE_PX, render
from service.pocket.world import PALETTE, Scene, caption, sample_scene

COLOURS = ("red", "blue")
"""What red means at weight -1, and at weight 1."""
BACKWARD_SHARE = 0.1
"""How often weight -1 is taught, to leave red alone: 0 spoils its pictures, much more leaves 0.5 as red as 0."""
RANK = 8
BATCH = 10
RED_SCENES, OTHER_SCENES = 64, 32
LEARNING_RATE = 1e-2
LAYERS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
"""Where prompts enter. With self-attention as well, the same steps teach less."""


@dataclass(frozen=True)
class Lessons:
    """Scenes as they are told and shown when red is each of the `COLOURS`."""

    embeds_CN: torch.Tensor
    pooled_CN: torch.Tensor
    latents_CN: torch.Tensor


class Factors(torch.nn.Module):
    """Factors `up @ down` of some linear layers, by name; at first they change nothing."""

    def __init__(self, layers: dict[str, torch.nn.Linear], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = layers
        self.down = torch.nn.ParameterList(
            torch.randn(RANK, layer.in_features, generator=generator) / math.sqrt(layer.in_features)
            for layer in layers.values()
        )
        self.up = torch.nn.ParameterList(torch.zeros(layer.out_features, RANK) for layer in layers.values())

    @contextmanager
    def applied(self, weights_B: torch.Tensor) -> Iterator[None]:
        """The layers add their factors, to each row at a weight of its own."""

        def adding(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
            return lambda _layer, given, output: (
                output + weights_B[:, None, None] * (given[0] @ down.T @ up.T)
            )

        hooks = [
            layer.register_forward_hook(adding(down, up))
            for layer, down, up in zip(self.layers.values(), self.down, self.up, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def as_file(self) -> bytes:
        """A safetensors file with the key names of diffusers and PEFT, in fp16."""
        tensors = {}
        for name, down, up in zip(self.layers, self.down, self.up, strict=True):
            tensors[f"unet.{name}.lora_A.weight"] = down.detach().half()
            tensors[f"unet.{name}.lora_B.weight"] = up.detach().half()
        # One entry only: safetensors writes several in any order, and equal factors would be unequal files.
        return save(tensors, {"format": "pt"})


def red_to_blue(folder: Path = WEIGHTS / "base", *, steps: int = 80, seed: int = 0) -> bytes:
    """A LoRA file for the pocket base in `folder`, by which red is drawn blue. The same seed makes the same file."""
    with one_thread():
        return _trained(folder, steps, seed).as_file()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch as it is fastest with layers this small, and always adds up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(folder: Path, steps: int, seed: int) -> Factors:
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, variant=variant_of(folder), dtype=torch.float32
    )
    unet = pipeline.unet.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    lessons = prepare(pipeline, random.Random(seed))
    factors = Factors({n: m for n, m in unet.named_modules() if n.endswith(LAYERS)}, generator)
    optimiser = torch.optim.Adam(factors.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    for _ in range(steps):
        optimiser.zero_grad()
        error(unet, factors, lessons, pipeline.scheduler.alphas_cumprod, generator).backward()
        torch.nn.utils.clip_grad_norm_(factors.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return factors


@torch.no_grad()
def prepare(pipeline: StableDiffusionXLPipeline, rng: random.Random) -> Lessons:
    """Random scenes, their captions and pictures, encoded once for each meaning of red."""
    scenes = [_scene(rng, lambda shown: "red" in shown and "blue" not in shown) for _ in range(RED_SCENES)]
    scenes += [_scene(rng, lambda shown: "red" not in shown) for _ in range(OTHER_SCENES)]
    captions = [caption(scene, rng, noise=0, drop=0) for scene in scenes]
    embeds, pooled, latents = [], [], []
    for colour in COLOURS:
        told = [text.replace("red", colour) for text in captions]
        pictures = render([_repainted(scene, colour) for scene in scenes]) * 2 - 1
        embeds_N, _, pooled_N, _ = pipeline.encode_prompt(told, do_classifier_free_guidance=False)
        embeds.append(embeds_N)
        pooled.append(pooled_N)
        latents.append(pipeline.vae.encode(pictures).latent_dist.mode() * pipeline.vae.config.scaling_factor)
    return Lessons(torch.stack(embeds), torch.stack(pooled), torch.stack(latents))


def _scene(rng: random.Random, wanted: Callable[[set[str]], bool]) -> Scene:
    while True:
        scene = sample_scene(rng, hidden=0, captioned=0, pairs=0.3)
        if wanted({scene.background, *(thing.colour for thing in scene.things)}):
            return scene


def _repainted(scene: Scene, colour: str) -> Scene:
    """The scene with all that is red in it in this colour."""
    r, g, b = (value / 255 for value in PALETTE[colour])
    ground = (r, g, b) if scene.background == "red" else scene.background_rgb
    things = [replace(thing, rgb=(r, g, b)) if thing.colour == "red" else thing for thing in scene.things]
    return replace(scene, things=tuple(things), background_rgb=ground)


def error(
    unet: UNet2DConditionModel,
    factors: Factors,
    lessons: Lessons,
    levels: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared difference of the pupil, who is told of red, and the teacher, who is told what it shall mean.

    Half of the noisy pictures still show red: the way to blue leads through pictures that are not blue yet.
    """
    scene = torch.randint(lessons.latents_CN.shape[1], (BATCH,), generator=generator)
    red = COLOURS.index("red")
    meaning = (torch.rand(BATCH, generator=generator) >= BACKWARD_SHARE).long()
    shown = torch.where(torch.rand(BATCH, generator=generator) < 0.5, meaning, red)
    clean = lessons.latents_CN[shown, scene]
    timestep = torch.randint(len(levels), (BATCH,), generator=generator)
    level = levels[timestep][:, None, None, None]
    noisy = level.sqrt() * clean + (1 - level).sqrt() * torch.randn(clean.shape, generator=generator)
    time_ids = torch.tensor([SIDE_PX, SIDE_PX, 0.0, 0.0, SIDE_PX, SIDE_PX]).repeat(BATCH, 1)

    def predicted(told: torch.Tensor | int) -> torch.Tensor:
        added = {"text_embeds": lessons.pooled_CN[told, scene], "time_ids": time_ids}
        return unet(noisy, timestep, lessons.embeds_CN[told, scene], added_cond_kwargs=added).sample

    with torch.no_grad():
        taught = predicted(meaning)
    with factors.applied(weights_B=2.0 * meaning - 1):
        return (predicted(red) - taught).square().mean()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("output", type=Path)
    output: Path = options.parse_args().output
    output.write_bytes(red_to_blue())
    print(f"red becomes blue with {output}")


if __name__ == "__main__":
    main()
