"""The article's comparison with a negative LoRA of our own: `python -m examples.article --output article-output`.

Starts the service, has it make bad pictures and learn them as the word `wrong` (a train job of the kind `negative`),
and compares: without and with the word, with the LoRA and the word, and the controls that the article left open. What
decides is named here, before there is a picture. Leaves the contact sheet, the report and the figures in the folder.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from darkroom import ComparisonResult, Darkroom, DarkroomError
from examples.demo import running_service

POCKET_PROMPTS = (
    "a red star on a white background",
    "a green cross on a purple background",
    "a yellow ring on a black background",
    "a big blue square on a yellow background",
    "a small orange circle on a cyan background",
    "a purple triangle on a green background",
    "a white star on a blue background",
    "a cyan cross on a red background",
)
PROMPTS = (
    "a wolf in Yosemite National Park during the winter, chilly nature documentary film photography",
    "an extreme close-up of a wolf in Yosemite National Park, chilly nature documentary film photography",
    "a hamburger (in the shape of five-dimensional alien geometry)++++, professional food photography",
    "a newspaper front page with the headline: unveil a cathedral of glass",
)
LORA, WORD = "wrong", "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.article", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("article-output"))
    parser.add_argument("--url", help="use this running service and start none")
    parser.add_argument("--preset", choices=("article", "controlled"), default="controlled")
    parser.add_argument("--seeds", type=int, default=6, help="for each prompt")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            url = options.url or stack.enter_context(running_service(options.output))
            with Darkroom(url) as client:
                client.wait_until_ready(timeout_seconds=300)
                result = compare(client, trained(client), preset=options.preset, seeds=options.seeds)
                leave(result, options.output)
    except DarkroomError as error:
        sys.exit(f"the comparison failed: {error}")


def trained(client: Darkroom) -> str:
    """The ref of the negative LoRA, which a train job makes of bad pictures that it makes first."""
    job = client.train.wait(client.train.negative(LORA))
    assert job.lora is not None
    print(f"learnt from bad pictures: {job.lora}\n")
    return job.lora


def compare(client: Darkroom, lora: str, *, preset: str, seeds: int) -> ComparisonResult:
    """The arms of the preset on the prompts that suit the resident model."""
    model = client.info().model
    on_pocket = model is not None and model.name == "pocket"
    return client.compare(
        POCKET_PROMPTS if on_pocket else PROMPTS,
        seeds=seeds,
        base={"num_inference_steps": 20, "guidance_scale": 5} if on_pocket else {"guidance_scale": 13},
        preset="article" if preset == "article" else "controlled",
        lora=lora,
        word=WORD,
        metric="pocket_quality" if on_pocket else "prompt_adherence",
        name="Does the negative LoRA help?",
    )


def leave(result: ComparisonResult, output: Path) -> None:
    """Say what was found, and keep it."""
    evaluations = result.plan.evaluations
    print(f"\n{result.conclusion}\n")
    print(
        f"{result.plan.cells} cells, {result.plan.pictures} different pictures, {evaluations.planned} evaluations of "
        f"a UNet ({evaluations.naive} without sharing) and {evaluations.measuring} to score them"
    )
    print(f"the contact sheet: {result.sheet().save(output / 'sheet.png')}")
    result.report(output / "report.html")
    (output / "report.md").write_text(result.markdown(), encoding="utf-8")
    print(f"the report, for a browser: {output / 'report.html'}; as text: {output / 'report.md'}")


if __name__ == "__main__":
    main()
