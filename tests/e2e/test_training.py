"""Train jobs on a real server by the real client: pictures in, a LoRA out, whatever happens to the server between."""

import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from darkroom import Darkroom
from darkroom.types import JobEvent, SynthesizeRequest, TrainJob
from examples import training as studies
from in_process import pixels
from processes import STOP_SECONDS, Served, serving, until, wait_until_ready

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 180.0
RECIPE: dict[str, Any] = {"train_batch_size": 2, "learning_rate": 2e-2, "rank": 4, "sample_every": 4}
PROMPT = "a red heart on a blue background"


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="darkroom-data-") as folder:
        yield Path(folder)


@dataclass
class Learned:
    """What the first server was seen to do: a subject was learnt, and the server left in the middle of another job."""

    job: TrainJob
    heard: list[JobEvent]
    drawn: list[np.ndarray]
    original: Path
    kohya: Path
    interrupted: TrainJob
    exit_code: int
    log: str


def heard_until_dropped(served: Served, job: TrainJob, count: int) -> list[JobEvent]:
    """The first events of a job, from a connection that is dropped after them."""
    found: list[JobEvent] = []
    with served.http.stream("GET", f"/v1/train-jobs/{job.id}/events", timeout=SECONDS) as stream:
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "data":
                found.append(JobEvent.model_validate_json(value))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended early")


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory) -> Learned:
    folder, files = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("files")
    for name, png, caption in studies.hearts(6):
        (files / name).write_bytes(png)
        (files / name).with_suffix(".txt").write_text(caption)
    with serving(folder, data=str(data)) as served, Darkroom(served.url, timeout=SECONDS) as client:
        wait_until_ready(served)
        hearts = client.datasets.upload(files, name="hearts")
        short = RECIPE | {"max_train_steps": 12, "checkpoint_every": 6}
        job = client.train.subject("hearts", hearts, instance_prompt="a heart", recipe=short, alias="prod")
        heard = heard_until_dropped(served, job, 5)
        heard += client.train.events(job, after=heard[-1].id)
        job = client.train.wait(job, progress=False, timeout_seconds=SECONDS)
        drawn = [
            pixels(client.generate(PROMPT, seed=7, num_inference_steps=8, loras=refs).image.data)
            for refs in (["hearts:prod"], [])
        ]
        assert job.lora is not None
        original = client.loras.download(job.lora, files)
        kohya = client.loras.download(job.lora, files, form="kohya")
        interrupted = client.train.negative(
            "wrong",
            synthesis=SynthesizeRequest(
                recipe="wrong",
                prompts=("(blurry)++ circle", "noisy star"),
                guidance_scales=(4.0, 7.0),
                num_inference_steps=4,
            ),
            recipe=RECIPE | {"max_train_steps": 60},
            evaluate=False,
        )
        until(lambda: client.train.get(interrupted).step, SECONDS, "a step of the negative job")
        log = client.train.download(job, "log.txt", files / "log.txt").read_text()
        served.process.send_signal(signal.SIGTERM)
        exit_code = served.process.wait(STOP_SECONDS)
    return Learned(job, heard, drawn, original, kohya, interrupted, exit_code, log)


@pytest.fixture(scope="module")
def resumed(data, learned, tmp_path_factory) -> Iterator[tuple[Darkroom, TrainJob, TrainJob]]:
    """A client of the second server on the same folder, the interrupted job as it first was there, and at its end."""
    with serving(tmp_path_factory.mktemp("second"), data=str(data)) as served:
        wait_until_ready(served)
        with Darkroom(served.url, timeout=SECONDS) as client:
            first = client.train.get(learned.interrupted)
            yield client, first, client.train.wait(first, progress=False, timeout_seconds=SECONDS)


def test_a_folder_of_pictures_becomes_a_published_lora_that_changes_pictures(learned):
    assert (learned.job.state, learned.job.lora, learned.job.step) == ("succeeded", "hearts@1", 12)
    names = {artifact.name for artifact in learned.job.artifacts}
    assert {"loss.png", "card.json", "contact-sheet.png", "samples/000012-0.png"} <= names
    with_it, without = learned.drawn
    assert np.abs(with_it - without).mean() > 2


def test_events_are_heard_once_and_in_order_over_two_connections(learned):
    assert [event.id for event in learned.heard] == list(range(1, len(learned.heard) + 1))
    states = [event.state for event in learned.heard if event.type == "state"]
    stages = [event.stage for event in learned.heard if event.type == "stage"]
    steps = [event.step for event in learned.heard if event.type == "progress"]
    assert states == ["queued", "running", "succeeded"]
    assert stages == ["preparing", "training", "evaluating", "publishing", "done"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12


def test_the_file_and_its_kohya_form_draw_the_same_picture_in_stock_diffusers(learned):
    from diffusers import StableDiffusionXLPipeline

    from service.engine import presets

    def drawn(file: Path | None) -> np.ndarray:
        pipeline = StableDiffusionXLPipeline.from_pretrained(presets.POCKET.base, variant="fp16")
        pipeline.to(dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        if file is not None:
            pipeline.load_lora_weights(load_file(file))
        generator = torch.Generator().manual_seed(7)
        return pipeline(PROMPT, num_inference_steps=4, generator=generator, output_type="np").images[0]

    original, kohya, base = drawn(learned.original), drawn(learned.kohya), drawn(None)
    assert any(name.startswith("lora_unet_") for name in load_file(learned.kohya))
    assert np.abs(original - kohya).max() <= 1e-4
    assert np.abs(original - base).max() > 1e-2


def test_what_the_process_wrote_can_be_downloaded_when_it_has_ended(learned):
    lines = learned.log.splitlines()
    assert lines[0].startswith("--- a process begins, ")
    assert " ended: exit code 0, " in lines[-1]
    assert str(Path(__file__).parents[2]) not in learned.log


def test_sigterm_of_the_server_leaves_its_job_waiting_at_a_checkpoint(learned, resumed):
    _, first, _ = resumed
    assert learned.exit_code == 0
    assert first.state in ("queued", "running")
    assert (first.problem, first.lora) == (None, None)
    (state,) = (artifact for artifact in first.artifacts if artifact.name == "state.safetensors")
    assert 0 < state.step < 60
    assert "log.txt" in {artifact.name for artifact in first.artifacts}


def test_the_next_server_goes_on_with_it_to_one_negative_lora_of_pictures_that_were_made_once(resumed):
    client, first, job = resumed
    assert (job.state, job.lora, job.step, job.attempts) == ("succeeded", "wrong@1", 60, 2)
    (made,) = [one for one in client.datasets.list() if one.name == "made for wrong"]
    assert (first.dataset, made.picture_count) == (made.id, 4)
    assert client.loras.version("wrong").triggers == ["wrong"]
    logs = [event.message for event in client.train.events(job) if event.type == "log"]
    assert logs[0] == "making 4 pictures to learn from"
    assert logs[1].startswith("goes on from step ")
    assert len(logs) == 2
    assert client.generate(
        "a fox", negative_prompt="wrong", loras=["wrong"], seed=7, num_inference_steps=4
    ).image
