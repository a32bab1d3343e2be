"""The card stage: the model card README.md, from the evaluation's figures and the run's own record."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from . import world
from .config import Config
from .intervals import Figure, read_figures

_TEMPLATE = """# Pocket SDXL: model card

A small SDXL of the true architecture (two text encoders, 77 tokens, a UNet with size and crop conditions, a
VAE, and a refiner with an aesthetic score) that draws what its prompt says. It learnt from pictures that
`service/pocket` draws itself, so it needs no download, no GPU and no one's data. 64 x 64 pixels; base and
refiner together {size_mb:.1f} MB in fp16. It exists so that prompts, weights, LoRAs, negatives, hand-over and
schedulers can be *seen* to work; it is no image generator.

![held-out prompts](samples/samples.png)

Prompts of combinations that it never saw in training (20 steps, guidance 5, one seed each). Two things:

![two things](samples/pairs.png)

Four prompts, fourteen seeds each:

![seeds](samples/seeds.png)

## Use

```python
from diffusers import StableDiffusionXLPipeline
from service.pocket import WEIGHTS

pipeline = StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "base", variant="fp16")
image = pipeline("a big red star on a blue background", num_inference_steps=20).images[0]
```

`WEIGHTS / "refiner"` loads with `StableDiffusionXLImg2ImgPipeline` in the same way and takes over at
`denoising_start=0.8`. Stored as fp16; run it as fp32 on a CPU, which is more than twice as fast there.

## What it knows

- shapes: {shapes} (also disc, box, donut)
- colours, of things and backgrounds: {colours} (also violet, turquoise)
- sizes: small (tiny, little), big (large, huge), and none; places: left, right, top, bottom, middle
- textures: striped, dotted (spotted), glossy (shiny)
- two things: "a red circle left of a blue square on a white background"; left of, right of, above (over),
  below (under), next to (beside, and)
- defects: {defects}; vague ones: {vague}; praise: {praise}
- the whole grammar stands at the top of `world.py`. What a caption never says (light, shadow, angle, exact
  hue, place where none is named) belongs to the seed.
  About a third of the pictures without a named defect hide one, as scraped pictures do.
- Other words have no meaning here; one caption in five carries some, known ones or made-up ones, so that they do
  little harm wherever they stand. Whole tokens that no caption used, free for LoRAs and textual inversion: {spare}.
  The shapes {unseen} can be drawn by `render.py` but were never shown.

## Figures

95 % intervals (Wilson for shares, bootstrap for means and differences), one seed a prompt, {steps} Euler
steps, guidance {guidance:g}, stock diffusers pipelines in fp32 on a CPU. The prompts ask for (shape, colour,
background) combinations that are held out of training. Quality is the mean of overlap with the asked shape,
purity and sharpness (`measure.py`), fixed before any comparison was made.

| figure | value | 95 % | n | target |
|---|---|---|---|---|
{rows}

{misses}

![refiner](samples/refiner.png)

Rows: base stopped at 0.8, base alone, base and refiner, aesthetic score 6.5, aesthetic score 2.5.

## How it was made

{record}

{notes}

To make it again: `python -m service.pocket.train --run runs/pocket`, then
`python -m service.pocket.publish runs/pocket`, which replaces these weights only if the new ones meet more
targets, or as many with better shares. A stage that is limited by time takes other steps on another machine:
the weights are made again in kind, not bit by bit.

## What it cannot do

- Anything outside its world: no photographs, people, text, or shapes that are not listed above.
- Counting, three or more things, sizes in scenes of two things, textures finer than about 7 pixels.
- Pictures of a size other than 64 x 64 are untrained.
"""


def write_card(run: Path, config: Config) -> None:
    """Write `run`/README.md from the run's weights, figures, states and, if there is one, its notes.md."""
    figures = read_figures(run / "evaluation.json")
    missed = [figure for figure in figures if not figure.is_met]
    size = sum(path.stat().st_size for path in (run / "weights").rglob("*") if path.is_file())
    notes = run / "notes.md"
    text = _TEMPLATE.format(
        size_mb=size / 1e6,
        shapes=", ".join(world.SHAPES),
        colours=", ".join(world.COLOURS),
        defects=", ".join(world.DEFECTS),
        vague=", ".join(world.VAGUE_DEFECTS),
        praise=", ".join(world.PRAISE),
        spare=", ".join(world.SPARE_WORDS),
        unseen=", ".join(world.UNSEEN_SHAPES),
        steps=config.num_inference_steps,
        guidance=config.guidance_scale,
        rows="\n".join(map(_row, figures)),
        misses=_misses(missed),
        record=_record(run, config),
        notes=notes.read_text().strip() if notes.exists() else "",
    )
    (run / "README.md").write_text(text)


def _record(run: Path, config: Config) -> str:
    """A table of what was trained, read from the states that the stages left."""
    rows = ["| stage | pictures a step | steps | minutes |", "|---|---|---|---|"]
    for name, pace in (("vae", config.vae), ("base", config.base), ("refiner", config.refiner)):
        state = run / f"{name}-state.safetensors"
        if state.exists():
            with safe_open(state, "pt") as saved:
                facts = saved.metadata()
            minutes = float(facts["seconds"]) / 60
            rows.append(f"| {name} | {pace.batch * config.processes} | {facts['step']} | {minutes:.1f} |")
    return "\n".join(rows)


def _row(figure: Figure) -> str:
    goal = "" if figure.target is None else f"{_goal(figure)} {'✓' if figure.is_met else '✗ missed'}"
    interval = f"{figure.low:.3f} to {figure.high:.3f}"
    return f"| {figure.name} | {figure.value:.3f} | {interval} | {figure.count} | {goal} |"


def _goal(figure: Figure) -> str:
    return f"{'>' if figure.kind == 'difference' else '≥'} {figure.target:g}"


def _misses(missed: Sequence[Figure]) -> str:
    if not missed:
        return "Every target is met."
    return "Missed: " + "; ".join(f"{f.name} is {f.value:.3f}, asked {_goal(f)}" for f in missed) + "."
