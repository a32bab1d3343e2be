"""A server that lends its device to a train job, memory and all, as its clients see it."""

import time
from pathlib import Path

import numpy as np
import pytest

from darkroom import Darkroom, Unavailable
from darkroom.types import SynthesizeRequest
from in_process import pixels
from processes import serving, until, wait_until_ready

pytestmark = pytest.mark.e2e

SECONDS = 120.0
PROMPT = "a red star on a blue background"


def test_pictures_are_refused_while_a_job_has_the_device_and_the_same_again_after_it(tmp_path: Path) -> None:
    with (
        serving(tmp_path, data=str(tmp_path / "data"), gpu_sharing="pause") as served,
        Darkroom(served.url, max_retries=0, timeout=SECONDS) as client,
    ):
        wait_until_ready(served)
        before = pixels(client.generate(PROMPT, seed=7).image.data)
        job = client.train.negative(
            "wrong",
            synthesis=SynthesizeRequest(prompts=("deformed circle",), guidance_scales=(5.0,)),
            recipe={"max_train_steps": 30, "train_batch_size": 2, "sample_prompts": ()},
            evaluate=False,
        )
        until(lambda: client.train.get(job).step, SECONDS, "a step of the job")
        with pytest.raises(Unavailable, match="a train job has had the device") as refused:
            client.generate(PROMPT, seed=7)
        assert refused.value.code == "device_lent"
        assert served.http.get("/readyz").status_code == 200, "weights that are out are not damaged ones"

        done = client.train.wait(job, progress=False, timeout_seconds=SECONDS)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                after = client.generate(PROMPT, seed=7)
                break
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        np.testing.assert_array_equal(pixels(after.image.data), before)
        drawn = client.generate(PROMPT, seed=7, loras=[done.lora])
        assert drawn.loras[0].digest == done.digest
        assert served.http.get("/readyz").status_code == 200
        sums = [line for line in served.http.get("/metrics").text.splitlines() if "checksum_ok" in line]
        assert any(line.endswith(" 1.0") for line in sums), sums
