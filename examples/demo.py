"""The demo: starts the service, makes one picture of everything through the client, and leaves a contact sheet.

`make demo`, or `python -m examples.demo --output FOLDER [--url URL of a running service]`.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom import Darkroom, DarkroomError, Generation, Image, LoraUse, Refiner
from examples.contact_sheet import Print, Strip, contact_sheet

PROMPT = "a red star on a blue background"
STAR = "a cyan star on a red background"
SEED = 7


@dataclass(frozen=True)
class Shot:
    """One request of the demo, and what is written under each of its pictures."""

    label: str
    request: dict[str, Any] = field(default_factory=dict)


STRIPS: dict[str, list[Shot]] = {
    f'"{PROMPT}": the base alone, then handing over to the refiner at 0.8': [
        Shot("base only", {"refiner": Refiner(enabled=False)}),
        Shot("base + refiner"),
    ],
    "one word weighted: a (small) red circle on a white background": [
        Shot(f"(small){weight:g}", {"prompt": f"a (small){weight:g} red circle on a white background"})
        for weight in (0.2, 1.0, 1.5, 2.0)
    ],
    f'"{STAR}": what the negative prompt takes away': [
        Shot("no negative prompt", {"prompt": STAR}),
        Shot("negative: washed out", {"prompt": STAR, "negative_prompt": "washed out"}),
        Shot("negative: blurry", {"prompt": STAR, "negative_prompt": "blurry"}),
    ],
    '"a big yellow ring on a black background": four seeds in one request': [
        Shot("seed {seed}", {"prompt": "a big yellow ring on a black background", "num_images": 4}),
    ],
    "places, textures, two things": [
        Shot(prompt, {"prompt": prompt})
        for prompt in (
            "a small white circle at the top, purple background",
            "a big dotted green square on a yellow background",
            "a striped blue star on a white background",
            "an orange circle and a cyan triangle on a black background",
        )
    ],
}

RED_STAR = "a red star on a white background"
LORA = "red-to-blue"
LORA_STRIPS: dict[str, list[Shot]] = {
    f'"{RED_STAR}" under a LoRA made by hand, "{LORA}"': [
        Shot("no LoRA", {"prompt": RED_STAR}),
        *(
            Shot(f"weight {weight:g}", {"prompt": RED_STAR, "loras": [LoraUse(ref=LORA, weight=weight)]})
            for weight in (0.5, 1.0, -1.0)
        ),
    ],
    'the same LoRA on one branch of the guidance alone (negative prompt: "red")': [
        Shot("no LoRA", {"prompt": RED_STAR, "negative_prompt": "red"}),
        *(
            Shot(
                label,
                {
                    "prompt": RED_STAR,
                    "negative_prompt": "red",
                    "loras": [LoraUse(ref=LORA, scope=scope)],
                },
            )
            for label, scope in (
                ("both branches", "both"),
                ("the prompt's only (cond)", "cond"),
                ("the negative's only (uncond)", "uncond"),
            )
        ),
    ],
}
"""What needs the pocket model, for which the LoRA is."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=Path("demo-output"))
    options.add_argument("--url", help="use this running service and start none")
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            url = chosen.url or stack.enter_context(running_service(chosen.output))
            with Darkroom(url) as client:
                develop(client, chosen.output)
    except DarkroomError as error:
        sys.exit(f"the demo failed: {error}\nthe service's own words are in {chosen.output / 'service.log'}")


def develop(client: Darkroom, output: Path) -> None:
    """Make every picture, save it, and leave the sheet."""
    print("waiting for the service to load its model and make its canary picture")
    client.wait_until_ready(timeout_seconds=300)
    info = client.info()
    assert info.model is not None
    print(f"ready: Darkroom {info.version} with '{info.model.name}' on {info.model.device}\n")
    wanted = dict(STRIPS)
    if info.model.name == "pocket":
        publish_by_hand(client, output)
        wanted |= LORA_STRIPS
    print(f"{'picture':<44} {'seed':>10} {'encode':>7} {'base':>7} {'refiner':>8} {'decode':>7} {'total':>7}")
    strips = []
    for row, (heading, shots) in enumerate(wanted.items(), start=1):
        prints = []
        for shot in shots:
            generation = client.generate(
                **{
                    "prompt": PROMPT,
                    "seed": SEED,
                    "num_inference_steps": 30,
                    "guidance_scale": 5.0,
                    **shot.request,
                }
            )
            for image in generation:
                label = shot.label.format(seed=image.seed)
                path = image.save(output / f"{row}-{len(prints) + 1}-{_file_name(label)}.png")
                _report(path, image, generation)
                prints.append(Print(image.pil(), label))
        strips.append(Strip(heading, prints))
    sheet = output / "contact-sheet.png"
    contact_sheet(f"Darkroom {info.version}, {info.model.name} model", strips).save(sheet)
    print(f"\neverything side by side: {sheet}")


def publish_by_hand(client: Darkroom, output: Path) -> None:
    """Make the LoRA in some seconds of training, in a process of its own, and publish it."""
    file = output / f"{LORA}.safetensors"
    print(f"making a LoRA by hand, '{LORA}' (half a minute)")
    making = subprocess.run(
        [sys.executable, "-m", "examples.handmade", str(file)], capture_output=True, text=True
    )
    if making.returncode:
        raise DarkroomError(f"the LoRA could not be made:\n{making.stderr}")
    published = client.loras.publish(LORA, file, alias="demo", description="Red becomes blue.")
    print(f"published {published.ref}, {published.size_bytes / 1000:.0f} kB, {published.digest[:19]}…\n")


def _report(path: Path, image: Image, generation: Generation) -> None:
    seconds = generation.timings
    print(
        f"{path.name:<44} {image.seed:>10} {seconds.encode:>7.3f} {seconds.base:>7.3f} "
        f"{seconds.refiner:>8.3f} {seconds.decode:>7.3f} {seconds.total:>7.3f}",
        flush=True,
    )


def _file_name(label: str) -> str:
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in label).split())[:40]


@contextlib.contextmanager
def running_service(output: Path) -> Iterator[str]:
    """The service on a free port of 127.0.0.1 as a process of its own, stopped at the end; its data is in `output`."""
    log = output / "service.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    print(f"starting the service on {url}; it writes to {log}")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "DARKROOM_LOG_FORMAT": "console",
                "DARKROOM_DATA": str(output.resolve() / "service-data"),
            },
        )
        try:
            _wait_for_the_port(port, process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for_the_port(port: int, process: subprocess.Popen[bytes], timeout_seconds: float = 120) -> None:
    give_up_at = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise DarkroomError(f"the service ended with exit code {process.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise DarkroomError(f"the service did not listen within {timeout_seconds:.0f} s")


if __name__ == "__main__":
    main()
