"""The study after a training: every kept checkpoint at a few weights, on the same prompts and seeds, measured.

Measurements need no other model. `likeness`: by how much the LoRA lowers the base's own denoising error on pictures of
the dataset, at fixed noise, 0 for not at all and 1 for all of it. `drift`: how far pictures of prompts that were not
trained move away from those of the base, mean absolute difference of pixels in 0..1. `nearest`: distance of the drawn
pictures to the nearest training picture, in the same unit, after both are made small. Beside these stand the
measurements of comparisons on the pictures of other prompts: how far they are from the base's, and by how much they are
sharper, more colourful and so on, in pairs of one seed.
The best is the one with the largest likeness minus drift, a rule that was fixed before any study was made.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image

from darkroom.types import CardCell, EvaluationCard, GenerateRequest, Refiner
from service.engine.models import Models
from service.measurements.pictures import distances, measured
from service.training.data import Example
from service.training.objective import Objective
from service.training.sheets import contact_sheet
from service.training.studio import Studio
from service.training.text import Captions

WEIGHTS: Final = (0.7, 1.0)
SEEDS: Final = (11, 12, 13)
OTHER_PROMPTS: Final = (
    "a photo of a red bicycle in front of a brick wall",
    "an oil painting of a lighthouse on a cliff",
    "portrait of an old sailor, soft light",
)
POCKET_PROMPTS: Final = (
    "a big green circle on a white background",
    "a striped purple star on a yellow background",
    "a red square left of a blue ring on a black background",
)
SMALL_PX: Final = 16
"""Edge that pictures are shrunk to before training pictures are looked for in them."""
COPIED_SHARE: Final = 0.4
"""Nearer to a training picture than this share of the distance that training pictures have to each other: a copy."""
ERROR_PICTURES: Final = 12
ERROR_DRAWS: Final = 4


@dataclass(frozen=True)
class Candidate:
    """What was learnt by a step, as the file that would be published."""

    step: int
    file: bytes


@dataclass(frozen=True)
class Studied:
    """The study's outcome, its pictures, and the candidate that it chose."""

    card: EvaluationCard
    sheet: bytes
    chosen: Candidate


class Errors:
    """The denoising error on training pictures, always of the same noise: how well they are known, as a number."""

    def __init__(self, models: Models, objective: Objective, examples: Sequence[Example]) -> None:
        rng = random.Random(0)
        self.examples = tuple(rng.sample(list(examples), min(ERROR_PICTURES, len(examples))))
        self._models, self._objective = models, objective

    @torch.no_grad()
    def of(self, latents: torch.Tensor, captions: Captions, time_ids: torch.Tensor) -> float:
        """Mean squared error of the models as they are. `latents` (N, C, h, w) of `examples`, `time_ids` (N, 6)."""
        embeds, pooled = captions.encode([example.caption for example in self.examples])
        unet, device = self._models.unets["base"], self._models.device
        dtype = next(unet.parameters()).dtype
        total = 0.0
        for draw in range(ERROR_DRAWS):
            generator = torch.Generator().manual_seed(draw)
            noised = self._objective.noised(latents, generator)
            for row in range(len(latents)):
                one = slice(row, row + 1)
                predicted = unet(
                    noised.latents_BChw[one].to(device, dtype),
                    noised.timesteps_B[one].to(device),
                    embeds[one].to(device, dtype),
                    added_cond_kwargs={
                        "text_embeds": pooled[one].to(device, dtype),
                        "time_ids": time_ids[one].to(device, dtype),
                    },
                ).sample
                target = noised.target_BChw[one].to(device)
                total += float((predicted.float() - target).square().mean())
        return total / (ERROR_DRAWS * len(latents))


def study(
    studio: Studio,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    likeness: Mapping[int, float],
    *,
    instance_prompts: Sequence[str],
    pocket: bool,
    edge: int,
    num_inference_steps: int,
    ended: Callable[[str], None] = lambda _text: None,
) -> Studied:
    """Draw and measure all candidates at all weights. `likeness` is by step, at weight 1."""
    others = POCKET_PROMPTS if pocket else OTHER_PROMPTS
    prompts = [*instance_prompts[: len(SEEDS)], *others]
    requests = [
        GenerateRequest(
            prompt=prompt,
            seed=SEEDS[place % len(SEEDS)],
            width=edge,
            height=edge,
            num_inference_steps=num_inference_steps,
            guidance_scale=5.0,
            refiner=Refiner(enabled=False),
        )
        for place, prompt in enumerate(prompts)
    ]
    subject = range(len(prompts) - len(others))
    base = studio.draw(requests)
    small = np.stack([_small(example.pixels_HWC()) for example in examples])
    usual = _usual_distance(small)
    cells: list[tuple[CardCell, Candidate]] = []
    rows, labels = [base], ["base"]
    for candidate in candidates:
        for weight in WEIGHTS:
            pictures = studio.draw(requests, studio.worn(candidate.file, weight=weight))
            drift = float(
                np.mean([_distance(pictures[i], base[i]) for i in range(len(subject), len(prompts))])
            )
            nearest = float(
                np.mean([np.abs(small - _small(pictures[i])).mean((1, 2, 3)).min() for i in subject])
            )
            measurements = {
                "likeness": likeness[candidate.step] * weight,
                "drift": drift,
                "nearest": nearest,
                **_compared([(pictures[i], base[i]) for i in range(len(subject), len(prompts))]),
            }
            cells.append((CardCell(step=candidate.step, weight=weight, measurements=measurements), candidate))
            rows.append(pictures)
            labels.append(f"step {candidate.step}, weight {weight:g}")
        ended(f"studied the checkpoint of step {candidate.step}")
    at_full = [(cell, candidate) for cell, candidate in cells if cell.weight == 1.0]
    best, chosen = max(at_full, key=lambda pair: _score(pair[0]))
    weight = max((cell for cell, candidate in cells if candidate is chosen), key=_score).weight
    warnings = []
    if usual and best.measurements["nearest"] < COPIED_SHARE * usual:
        warnings.append(
            f"pictures drawn with it lie {best.measurements['nearest']:.3f} from the nearest training picture, and "
            f"those {usual:.3f} from each other: it has learnt them by heart. Train fewer steps, or more pictures"
        )
    if best.measurements["likeness"] <= 0:
        warnings.append(
            "it knows the pictures no better than the base does. Train longer, or at a higher rate"
        )
    card = EvaluationCard(
        chosen_step=chosen.step,
        chosen_weight=weight,
        reason="largest likeness minus drift among the kept checkpoints at weight 1",
        cells=[cell for cell, _ in cells],
        prompts=list(prompts),
        seeds=[request.seed or 0 for request in requests],
        warnings=warnings,
    )
    return Studied(card, contact_sheet(rows, labels, prompts), chosen)


def _compared(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Means of the distances of each pair, and of the differences of what is measured of either picture."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for picture, other in pairs:
        for name, distance in distances(picture, other).items():
            found[name].append(distance)
        before = measured(other)
        for name, value in measured(picture).items():
            found[name].append(value - before[name])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _score(cell: CardCell) -> float:
    return cell.measurements["likeness"] - cell.measurements["drift"]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean() / 255)


def _small(pixels_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels_HWC).resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32) / 255


def _usual_distance(small: np.ndarray) -> float:
    """How far a training picture is from its nearest neighbour among the others, on average; 0 for a single one."""
    if len(small) < 2:
        return 0.0
    small = small[:200]
    apart = np.abs(small[:, None] - small[None]).mean((2, 3, 4))
    np.fill_diagonal(apart, np.inf)
    return float(apart.min(1).mean())
