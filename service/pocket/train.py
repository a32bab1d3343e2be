"""Make the pocket SDXL's weights: `python -m service.pocket.train --run runs/pocket`.

Stages: world, tokenizers, VAE, gate, dataset, base, refiner, folders, evaluation, card. What a stage
has finished is kept in the run's folder and skipped next time; a stopped training goes on from its last saved
state. The committed weights are not touched: `service.pocket.publish` replaces them by a run that beats
them.
"""

import argparse
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .base import train_base
from .card import write_card
from .config import Config
from .dataset import write_dataset
from .evaluate import evaluate_into
from .folders import write_folders
from .measure import read
from .refiner import train_refiner
from .render import render
from .sheets import write_sheet
from .team import run_team
from .tokenizers import write_tokenizers
from .vae import round_trip, train_vae
from .world import Scene, caption, sample_scene


class GateClosed(Exception):
    """The VAE loses too many shapes for a UNet to be worth training on its latents."""


def run_stages(config: Config, run: Path, *, init: Path | None, device: str) -> None:
    """Run every stage that has not finished in the folder `run`; `init` is an earlier weights folder."""
    team = config.processes
    vae_init, base_init = (init / "base" / "vae", init / "base") if init else (None, None)
    stages: list[tuple[str, Callable[[], None]]] = [
        ("world", lambda: show_world(config, run / "world.png")),
        ("tokenizers", lambda: write_tokenizers(run)),
        ("vae", lambda: run_team(team, train_vae, config, run / "vae", vae_init, device)),
        ("gate", lambda: check_round_trip(config, run / "vae", run / "round-trip.png")),
        ("dataset", lambda: run_team(team, write_dataset, config, run, device)),
        ("base", lambda: run_team(team, train_base, config, run, base_init, device)),
        ("refiner", lambda: run_team(team, train_refiner, config, run, device)),
        ("folders", lambda: write_folders(run, run / "weights")),
        ("evaluation", lambda: evaluate_into(run / "weights", config, run / "evaluation.json")),
        ("card", lambda: write_card(run, config)),
    ]
    run.mkdir(parents=True, exist_ok=True)
    for name, work in stages:
        done = run / f"{name}.done"
        if done.exists():
            continue
        print(f"== {name}", flush=True)
        work()
        done.touch()


def show_world(config: Config, path: Path) -> None:
    """Write a sheet of training pictures, and print some captions."""
    rng = random.Random(config.seed)
    scenes = [sample_scene(rng) for _ in range(112)]
    write_sheet(render(scenes), path, 14)
    for scene in scenes[:10]:
        print(caption(scene, rng), flush=True)


def check_round_trip(config: Config, folder: Path, path: Path, *, count: int = 400) -> None:
    """Print what the VAE keeps of the shapes in `count` faultless scenes of one thing and of two each; write a sheet.

    Raises GateClosed if fewer shapes of either kind survive than `config.vae_gate` and `vae_gate_pairs` ask.
    """
    vae = AutoencoderKL.from_pretrained(folder).eval()
    rng = random.Random(config.seed + 99)
    closed, sheet = [], []
    for kind, pairs, gate in (("one thing", 0, config.vae_gate), ("two things", 1, config.vae_gate_pairs)):
        scenes = [sample_scene(rng, hidden=0, captioned=0, pairs=pairs) for _ in range(count)]
        before = render(scenes)
        after = round_trip(vae, before)
        sheet.append(torch.stack([before[:28], after[:28]], 1).flatten(0, 1))
        kept = sum(map(shapes_kept, scenes, after)) / sum(len(scene.things) for scene in scenes)
        decibels = -10 * (after - before).square().mean().log10().item()
        print(f"round trip, {kind}: {kept:.3f} of shapes kept, {decibels:.1f} dB", flush=True)
        if kept < gate:
            closed.append(f"of {kind} the VAE keeps {kept:.1%} of shapes, fewer than {gate:.0%}")
    write_sheet(torch.cat(sheet), path, 14)
    if closed:
        raise GateClosed("; ".join([*closed, "train it longer"]))


def shapes_kept(scene: Scene, picture: torch.Tensor) -> int:
    """How many things of `scene` the picture shows in their own colour and shape."""
    seen = {(thing.colour, thing.shape) for thing in read(picture).things}
    return sum((thing.colour, thing.shape) in seen for thing in scene.things)


def _leave(*_: object) -> None:
    raise SystemExit("stopped; run the same command again to go on from the last saved state")


def main() -> None:
    # An exit in good order also ends the training processes, which a plain SIGTERM would leave behind.
    signal.signal(signal.SIGTERM, _leave)
    parser = argparse.ArgumentParser(prog="python -m service.pocket.train", description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/pocket"), help="folder of this run's results and states"
    )
    parser.add_argument(
        "--init", type=Path, help="start from this weights folder (with base/ in it) where shapes match"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="training processes on a CPU; CUDA has one")
    parser.add_argument(
        "--batch", type=int, help="pictures a step of base and refiner; a large GPU takes 512"
    )
    parser.add_argument("--tiny", action="store_true", help="the toy of the tests, in seconds")
    for stage in ("vae", "base", "refiner"):
        parser.add_argument(f"--{stage}-seconds", type=float, help=f"end the {stage} stage after this time")
    options = parser.parse_args()
    config = Config.tiny() if options.tiny else Config()
    if options.device == "cuda":
        config = replace(config, processes=1)
    elif options.processes:
        config = replace(config, processes=options.processes)
    for stage in ("vae", "base", "refiner"):
        pace = replace(getattr(config, stage), seconds=getattr(options, f"{stage}_seconds"))
        if options.batch and stage != "vae":
            pace = replace(pace, batch=options.batch)
        config = replace(config, **{stage: pace})
    if config.processes == 1:
        torch.set_num_threads(os.cpu_count() or 1)
    run_stages(config, options.run, init=options.init, device=options.device)


if __name__ == "__main__":
    main()
