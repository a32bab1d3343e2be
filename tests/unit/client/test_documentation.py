"""Every example that a reader may copy runs: docstrings and README."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import darkroom
from darkroom.testing import FakeDarkroom

A_LORA = b"\x02\0\0\0\0\0\0\0{}"
README = Path(__file__).parents[3] / "client" / "README.md"


def picture_folder(path):
    """What begins as two pictures do, and a caption."""
    path.mkdir()
    for number in (1, 2):
        (path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    (path / "1.txt").write_text("a dog in a basket", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "darkroom",
        "darkroom._client",
        "darkroom._comparison_result",
        "darkroom._comparisons",
        "darkroom._datasets",
        "darkroom._errors",
        "darkroom._files",
        "darkroom._images",
        "darkroom._loras",
        "darkroom._train",
        "darkroom.testing",
    ],
)
def test_docstring_examples_run(name, tmp_path):
    fake = FakeDarkroom()
    lora_file = tmp_path / "ink-wash.safetensors"
    lora_file.write_bytes(A_LORA)
    examples = {"fake": fake, "client": fake.client(), "folder": tmp_path, "lora_file": lora_file}
    examples["picture_folder"] = picture_folder(tmp_path / "pictures")
    result = doctest.testmod(importlib.import_module(name), extraglobs=examples)
    assert result.failed == 0


def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("ink-wash.safetensors").write_bytes(A_LORA)
    picture_folder(Path("pictures"))
    monkeypatch.setattr(darkroom, "Darkroom", lambda: FakeDarkroom().client())
    everything = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(block, everything)
    assert sorted(path.name for path in tmp_path.glob("fox*")) == [
        f"fox-{seed}.png" for seed in (10, 7, 8, 9)
    ]
    assert Path("copy.safetensors").read_bytes() == A_LORA
    assert Path("compared.png").read_bytes() != Path("sheet.png").read_bytes()
    assert Path("report.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.splitlines() == [
        "1 of 2",
        "2 of 2",
        "ink-wash@1 ['ink wash']",
        "ink-wash 1",
        "['host', 'host']",
        "1.png a dog in a basket",
        "2.png a photo of sks dog",
        "78 bad pictures, True",
        "500 of 500, loss 0.0002",
        "wrong@1 ['samples/000500-0.png', 'checkpoints/000500.safetensors', 'loss.png', 'card.json']",
        "word: no_difference in 16 pairs",
        "word and LoRA: no_difference in 16 pairs",
        "sharpness of 'word' against 'plain' in 16 pairs: no difference. "
        "sharpness of 'word and LoRA' against 'plain' in 16 pairs: no difference.",
        "16 differences of contrast",
        "/width Input should be a multiple of 8",
        "/guidance_scale Input should be less than or equal to 50",
    ]


def test_every_public_thing_says_what_it_is():
    for name in darkroom.__all__:
        thing = getattr(darkroom, name)
        if isinstance(thing, type) and not issubclass(thing, darkroom.types.Response):
            assert thing.__doc__, name
