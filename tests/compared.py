"""Comparisons asked for over HTTP, as any program would, and waited for."""

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from in_process import Served

PROMPTS = ["a big red circle on a blue background", "a small green star on a white background"]
QUICK = {"num_inference_steps": 4, "guidance_scale": 5}
ENDED = ("succeeded", "failed", "cancelled")


def asked(served: Served, status: int = 202, **fields: Any) -> dict[str, Any]:
    """The answer to a comparison of two prompts and two seeds in few steps, where `fields` say nothing else."""
    body = {"prompts": PROMPTS, "seeds": [1, 2], "adherence": False, **fields}
    body["base"] = {**QUICK, **fields.get("base", {})}
    answer = served.http.post("/v1/compare", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def waited_for(served: Served, id: str, *, cells: int | None = None) -> dict[str, Any]:
    """The comparison once it has ended, or once so many of its cells have."""
    give_up_at = time.monotonic() + 120
    while time.monotonic() < give_up_at:
        run = served.http.get(f"/v1/runs/{id}").json()
        if run["state"] in ENDED or (cells is not None and run["done"] >= cells):
            return run
        time.sleep(0.02)
    raise AssertionError(f"still {run['state']}, {run['done']} cells")


def compared(served: Served, **fields: Any) -> dict[str, Any]:
    """The comparison at its end."""
    return waited_for(served, asked(served, **fields)["id"])


def cells_of(run: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [cell for cell in run["cells"] if cell["arm"] == arm]


def pixels_of(served: Served, cell: dict[str, Any]) -> np.ndarray:
    data = served.http.get(cell["image"]).content
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def generated(served: Served, request: dict[str, Any]) -> np.ndarray:
    """The picture that the request gives by itself."""
    answer = served.http.post("/v1/generate", json=request, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
