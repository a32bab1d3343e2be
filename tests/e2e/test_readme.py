"""The README's promises: its commands exist and its code runs, against a service started as it says."""

import io
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from darkroom import Darkroom
from lora_files import lora_file
from processes import ROOT, serving, wait_until_ready

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("readme")) as served:
        wait_until_ready(served)
        yield served.url


def block_with(text: str) -> str:
    """The only Python block that says this."""
    (code,) = [block for block in blocks("python") if text in block]
    return code


def at(url: str, code: str) -> str:
    """The code, sent to the test's own service instead of the documented address."""
    assert "http://127.0.0.1:3000" in code
    return code.replace("http://127.0.0.1:3000", url)


def test_its_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "test", "serve"} <= named <= targets


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_its_curl_command_leaves_a_picture(url, tmp_path):
    (command,) = [block for block in blocks("sh") if "curl" in block]
    subprocess.run(["bash", "-ec", at(url, command)], cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "star.png").size == (64, 64)


def test_its_python_code_saves_four_pictures(url, tmp_path):
    code = block_with("num_images=4")
    done = subprocess.run(
        [sys.executable, "-c", at(url, code)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"star-{seed}.png" for seed in (10, 7, 8, 9)]
    assert "total=" in done.stdout


def test_its_lora_code_publishes_and_uses_what_it_says(url, tmp_path):
    code = block_with("client.loras.publish(")
    (tmp_path / "ink-wash.safetensors").write_bytes(lora_file(1))
    with Darkroom(url) as client:
        client.loras.publish("wrong", io.BytesIO(lora_file(2)))
        done = subprocess.run(
            [sys.executable, "-c", at(url, code)], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert done.stdout.startswith("ink-wash@1 ['unet']")
        assert client.loras.alias("ink-wash", "prod").version == 1


def test_its_training_code_publishes_and_uses_what_it_says(url, tmp_path):
    code = block_with("client.train.subject(")
    (tmp_path / "pictures").mkdir()
    for place, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{place}.png")
    assert '"max_train_steps": 1000' in code
    short = at(url, code).replace('"max_train_steps": 1000', '"max_train_steps": 1')
    subprocess.run([sys.executable, "-c", short], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "contact-sheet.png", "dog.png"}
    with Darkroom(url) as client:
        assert client.loras.alias("my-dog", "prod").version == 1


def test_its_compare_code_says_what_was_found_and_leaves_sheet_and_report(url, tmp_path):
    code = at(url, block_with("client.compare("))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Sharpness decides" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png", "report.html"}


def test_the_guide_to_compare_runs(url, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL)
    short = at(url, code).replace("seeds=8", "seeds=1")
    done = subprocess.run(
        [sys.executable, "-c", short], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Too few pairs to say" in done.stdout
    assert (tmp_path / "report.html").exists()
