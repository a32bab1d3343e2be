"""docs/training.md: its code runs, and what its commands send is what the service takes."""

import json
import re
from pathlib import Path

import pytest

import darkroom
from darkroom.testing import FakeDarkroom
from darkroom.types import TrainRecipe, TrainRequest

GUIDE = (Path(__file__).parents[3] / "docs" / "training.md").read_text()


def test_its_python_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in (1, 2):
        Path("pictures", f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    fake = FakeDarkroom()
    monkeypatch.setattr(darkroom, "Darkroom", lambda _url: fake.client())
    everything: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(block, everything)
    assert Path("dog.png").exists()
    assert {job.kind for job in fake.client().train.list()} == {"subject", "negative", "embedding", "pivotal"}


@pytest.mark.parametrize("body", re.findall(r"-d '(\{.*?\})'", GUIDE, re.DOTALL))
def test_what_its_commands_send_is_a_request(body):
    TrainRequest.model_validate(json.loads(body.replace("sha256:…", "sha256:" + "0" * 64)))


def test_it_names_every_field_of_a_recipe():
    table = GUIDE.split("## The recipe")[1].split("## Jobs")[0]
    assert not [name for name in TrainRecipe.model_fields if f"`{name}`" not in table]
