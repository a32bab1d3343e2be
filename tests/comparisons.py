"""Comparisons to test with: complete ones, with made-up figures and pictures that look like their prompts."""

import hashlib
import math
import random
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from statistics import mean, stdev
from typing import Any, Final

import numpy as np
from PIL import Image

from darkroom.types import (
    Arm,
    CompareCell,
    CompareEvaluations,
    CompareMetric,
    ComparePlan,
    CompareRequest,
    CompareVerdict,
    Comparison,
    Direction,
    GenerateRequest,
    LoraReceipt,
    LoraUse,
    MetricInfo,
    PictureSettings,
    PlannedArm,
    Problem,
    Receipt,
)
from service.pocket.render import render
from service.pocket.world import COLOURS, PALETTE, SHAPES, Scene, Thing

ARMS: Final = ("nothing", "wrong in the negative prompt", "LoRA and wrong in the negative prompt")
LORA: Final = LoraUse(ref="wrong@1", scope="uncond")
METRICS: Final[dict[CompareMetric, tuple[str, str, Direction | None, float]]] = {
    "sharpness": ("sharpness (variance of the Laplacian)", "", "higher", 120.0),
    "colorfulness": ("colourfulness (Hasler and Süsstrunk)", "", None, 60.0),
    "luminance": ("luminance (mean)", "", None, 0.45),
    "pocket_accuracy": ("asked properties that the picture shows", "share", "higher", 0.8),
    "ssim": ("structural similarity to the baseline's picture", "", None, 0.7),
    "perceptual_distance": ("how far the composition moved", "ΔE", None, 12.0),
}
"""Title, unit, the better way, and about how large it is."""
DISTANCES: Final = ("ssim", "perceptual_distance")
AT: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _printable(name: str) -> str:
    """What a request may call an arm; reports must bear whatever an older table may hold."""
    return "".join(c for c in name if c.isprintable()) or "nameless"


def a_comparison(
    arms: int | Sequence[str] = 3,
    prompts: int | Sequence[str] = 8,
    seeds: int | Sequence[int] = 4,
    *,
    failed: Collection[int] = (),
    waiting: Collection[int] = (),
    size: tuple[int, int] = (64, 64),
    metric: CompareMetric | None = "sharpness",
    **changes: Any,
) -> Comparison:
    """One that has ended; `failed` and `waiting` are indexes of cells, `size` is (width, height).

    Any field of `Comparison` can be changed. The first arm is the baseline.
    """
    names = _arm_names(arms) if isinstance(arms, int) else list(arms)
    texts = [_scene_text(i) for i in range(prompts)] if isinstance(prompts, int) else list(prompts)
    numbers = [84061037 + i for i in range(seeds)] if isinstance(seeds, int) else list(seeds)
    settings = {name: _settings(place, size) for place, name in enumerate(names)}
    places = [(prompt, seed, arm) for prompt in texts for seed in numbers for arm in names]
    cells = [
        _cell(index, arm, prompt, seed, settings[arm], index in failed, index in waiting, arm == names[0])
        for index, (prompt, seed, arm) in enumerate(places)
    ]
    request = CompareRequest(
        prompts=tuple(texts),
        seeds=tuple(numbers),
        arms=tuple(Arm(name=_printable(name), set=settings[name]) for name in names),
        metric=metric,
        name="Does the word help?",
    )
    plan = ComparePlan(
        arms=[PlannedArm(name=name, settings=settings[name]) for name in names],
        baseline=names[0],
        prompts=texts,
        seeds=numbers,
        cells=len(cells),
        pictures=len(cells),
        evaluations=CompareEvaluations(
            planned=72 * len(cells), naive=100 * len(cells), measuring=8 * len(cells)
        ),
        swaps=1,
        estimated_seconds=0.31 * len(cells),
        metrics=list(METRICS),
        fits=True,
    )
    comparison = Comparison(
        id="cmp_5f2b7c9e",
        state="succeeded",
        stage="done",
        name=request.name,
        request=request,
        plan=plan,
        done=len(cells) - len(set(waiting)),
        cells=cells,
        metrics=[
            MetricInfo(
                metric=name,
                title=title,
                unit=unit,
                kind="distance" if name in DISTANCES else "value",
                better=better,
                decides=name == metric,
            )
            for name, (title, unit, better, _) in METRICS.items()
        ],
        verdicts=[_verdict(arm, name, metric, cells, names) for arm in names[1:] for name in METRICS],
        model="pocket",
        created_at=AT,
        started_at=AT,
        finished_at=AT,
    )
    conclusion = " ".join(verdict.note for verdict in comparison.verdicts if verdict.decides)
    return comparison.model_copy(
        update={"conclusion": conclusion or "No metric was named to decide; this only describes."} | changes
    )


def pictures_for(comparison: Comparison) -> dict[int, np.ndarray]:
    """The pictures of the cells that are done, by index: uint8 RGB of the cell's size. Later arms are more deformed."""
    plan = comparison.plan
    names = [arm.name for arm in plan.arms]
    done = [cell for cell in comparison.cells if cell.state == "done"]
    scenes = [
        _scene(plan.prompts.index(cell.prompt), cell.seed, names.index(cell.arm) / max(1, len(names) - 1))
        for cell in done
    ]
    pixels_BHWC = (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy() if scenes else []
    return {cell.index: _sized(pixels, cell) for cell, pixels in zip(done, pixels_BHWC, strict=True)}


def _arm_names(count: int) -> list[str]:
    return [ARMS[i] if i < len(ARMS) else f"guidance {i + 2}" for i in range(count)]


def _settings(place: int, size: tuple[int, int]) -> PictureSettings:
    return PictureSettings(
        negative_prompt="wrong" if place else None,
        width=size[0],
        height=size[1],
        guidance_scale=float(place + 2) if place > 2 else 7.5,
        loras=(LORA,) if place == 2 else (),
    )


def _colours(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], COLOURS[(place + 5) % len(COLOURS)]


def _scene_text(place: int) -> str:
    colour, ground = _colours(place)
    times = place // (len(COLOURS) * len(SHAPES))
    text = f"a {colour} {SHAPES[place % len(SHAPES)]} on a {ground} background"
    return f"{text}, {times + 1} times" if times else text


def _scene(place: int, seed: int, severity: float) -> Scene:
    rng = random.Random(f"{place} {seed}")
    colour, ground = _colours(place)
    rgb = {name: tuple(level / 255 for level in PALETTE[name]) for name in (colour, ground)}
    thing = Thing(
        shape=SHAPES[place % len(SHAPES)],
        colour=colour,
        rgb=rgb[colour],
        x=rng.uniform(24, 40),
        y=rng.uniform(24, 40),
        radius=rng.uniform(14, 19),
        angle=rng.uniform(-0.4, 0.4),
    )
    return Scene(
        things=(thing,),
        background=ground,
        background_rgb=rgb[ground],
        light=(rng.uniform(0, 0.22), rng.uniform(0, 6.28), 0.12),
        defects={"deformed": 0.5 * severity},
        warp=tuple(rng.random() for _ in range(8)),
    )


def _sized(pixels_HWC: np.ndarray, cell: CompareCell) -> np.ndarray:
    """Cut to the cell's aspect ratio, and enlarged."""
    height, width = pixels_HWC.shape[:2]
    scale = max(cell.width / width, cell.height / height)
    cut_width, cut_height = round(cell.width / scale), round(cell.height / scale)
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    cut = pixels_HWC[top : top + cut_height, left : left + cut_width]
    if cut.shape[:2] == (cell.height, cell.width):
        return np.ascontiguousarray(cut)
    return np.asarray(Image.fromarray(cut).resize((cell.width, cell.height), Image.Resampling.BICUBIC))


def _cell(
    index: int,
    arm: str,
    prompt: str,
    seed: int,
    settings: PictureSettings,
    failed: bool,
    waiting: bool,
    is_baseline: bool,
) -> CompareCell:
    request = GenerateRequest(
        prompt=prompt, seed=seed, **{k: getattr(settings, k) for k in settings.model_fields_set}
    )
    cell = CompareCell(index=index, arm=arm, prompt=prompt, seed=seed, request=request)
    if waiting:
        return cell
    if failed:
        problem = Problem(
            title="The picture is black",
            status=500,
            code="defective_picture",
            detail="the decoded picture is black; another seed or a lower guidance may help",
        )
        return cell.model_copy(update={"state": "failed", "problem": problem})
    return cell.model_copy(
        update={
            "state": "done",
            "image": f"/v1/runs/cmp_5f2b7c9e/images/{index}",
            "width": settings.width,
            "height": settings.height,
            "pixels_digest": hashlib.sha256(f"{arm}/{prompt}/{seed}".encode()).hexdigest(),
            "evaluations": 72,
            "seconds": 0.31,
            "measurements": _measurements(arm, prompt, seed, is_baseline),
            "receipt": _receipt(request),
        }
    )


def _measurements(arm: str, prompt: str, seed: int, is_baseline: bool) -> dict[str, float]:
    """Most of a value is the scene's, as with real pictures; each arm moves each metric its own way."""
    values = {}
    for metric, (_, _, _, size) in METRICS.items():
        if metric in DISTANCES and is_baseline:
            continue
        scene = random.Random(f"{metric} {prompt} {seed}").gauss(0, 0.3)
        shift = 0.0 if is_baseline else random.Random(f"{metric} {arm}").gauss(0, 0.08)
        noise = random.Random(f"{metric} {arm} {prompt} {seed}").gauss(0, 0.05)
        value = size * max(0.05, 1 + scene + shift + noise)
        values[metric] = min(1.0, value) if metric in ("ssim", "pocket_accuracy", "luminance") else value
    return values


def _receipt(request: GenerateRequest) -> Receipt:
    width, height = request.width or 64, request.height or 64
    return Receipt(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed or 0,
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps,
        base_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        refiner=None,
        original_size=(height, width),
        crops_coords_top_left=(0, 0),
        target_size=(height, width),
        negative_original_size=None,
        negative_crops_coords_top_left=(0, 0),
        negative_target_size=None,
        model="pocket",
        loras=[
            LoraReceipt(
                ref=lora.ref,
                digest="sha256:" + hashlib.sha256(lora.ref.encode()).hexdigest(),
                weight=lora.weight,
                scope=lora.scope,
                start=lora.start,
                end=lora.end,
            )
            for lora in request.loras
        ],
        model_fingerprint="3f" * 32,
        versions={"darkroom": "0.1.0", "torch": "2.13.0"},
    )


def _verdict(
    arm: str, metric: CompareMetric, decides: CompareMetric | None, cells: list[CompareCell], names: list[str]
) -> CompareVerdict:
    """By a plain normal interval: figures to look at, not the service's own statistics."""
    values = {(cell.arm, cell.prompt, cell.seed): cell.measurements.get(metric) for cell in cells}
    differences = [
        value if metric in DISTANCES else value - baseline
        for (name, prompt, seed), value in values.items()
        if name == arm and value is not None
        if metric in DISTANCES or (baseline := values[names[0], prompt, seed]) is not None
    ]
    is_named = metric == decides
    pairs = len(differences)
    if pairs < 2:
        return CompareVerdict(
            arm=arm,
            metric=metric,
            decides=is_named,
            outcome="absent" if not pairs else "too_few",
            pairs=pairs,
            note=f"{arm}: {pairs} pairs of {metric}; add seeds.",
        )
    middle, error = mean(differences), stdev(differences) / math.sqrt(pairs)
    interval = (middle - 2 * error, middle + 2 * error)
    corrected = (middle - 2.3 * error, middle + 2.3 * error)
    outcome: Any = "higher" if corrected[0] > 0 else "lower" if corrected[1] < 0 else "no_difference"
    says = {"higher": "is higher than", "lower": "is lower than"}.get(outcome, "does not differ visibly from")
    verdict = CompareVerdict(
        arm=arm,
        metric=metric,
        decides=is_named,
        outcome=outcome,
        pairs=pairs,
        mean_difference=middle,
        interval=interval,
        corrected_interval=corrected,
        note=f"The {metric} of “{arm}” {says} that of “{names[0]}”: {middle:+.3g} in {pairs} pairs.",
    )
    if metric in DISTANCES:
        note = f"The {metric} of “{arm}” to “{names[0]}” is {middle:.3g} in {pairs} pairs."
        return verdict.model_copy(update={"note": note})
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    rare = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    p_value = min(1.0, 2 * rare / 2 ** (wins + losses))
    counts = {"wins": wins, "losses": losses, "ties": pairs - wins - losses, "p_value": p_value}
    counts |= {"win_rate": wins / (wins + losses) if wins + losses else None}
    return verdict.model_copy(update=counts | {"corrected_p_value": min(1.0, p_value * (len(names) - 1))})
