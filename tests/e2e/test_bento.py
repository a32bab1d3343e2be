"""The Bento that `make bento` builds: what is in it, and that it serves a picture and stops when told."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest
from PIL import Image

from darkroom import Darkroom
from darkroom.types import CompareEvent
from darkroom.types.generate import GenerateResponse
from lora_files import lora_file
from processes import ROOT, Served, free_port, running, wait_until_ready

pytestmark = pytest.mark.e2e


def environment(bentoml_home: Path, **more: str) -> dict[str, str]:
    """This process's environment without its ways to import our packages and without its settings."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("DARKROOM_")}
    return kept | {"BENTOML_HOME": str(bentoml_home), "BENTOML_DO_NOT_TRACK": "true"} | more


def run(*command: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tail(served: Served) -> str:
    return served.log.read_text()[-4000:]


def files_under(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built Bento, from a copy of the checkout in which there is also much that must stay out."""
    tree = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for folder in ("service", "lora_registry", "client", "tests", "deploy"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for file in ("bentofile.yaml", "pyproject.toml", "requirements.lock", "README.md"):
        shutil.copy(ROOT / file, tree)
    for stray in (
        ".git/config",
        ".venv/lib/service/x.py",
        "build/service/x.py",
        "data/key",
        "notes/service/x.py",
    ):
        (tree / stray).parent.mkdir(parents=True)
        (tree / stray).write_text("must not be packed\n")

    home = tmp_path_factory.mktemp("bentoml-home")
    env = environment(home, PYTHONPATH=str(tree / "client" / "src"))
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", "dist", "client", cwd=tree, env=env)
    output = run("-m", "bentoml", "build", "--output", "tag", cwd=tree, env=env)
    (tag,) = re.findall(r"^__tag__:(\S+)$", output, re.MULTILINE)
    return home / "bentos" / Path(*tag.split(":"))


@pytest.fixture
def served(bento: Path, tmp_path: Path) -> Iterator[Served]:
    """The Bento, served by `bentoml serve` as the image's entrypoint does."""
    (wheel,) = (bento / "env" / "python" / "wheels").iterdir()
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    port = free_port()
    env = environment(
        tmp_path / "bentoml-home",
        # The client comes from the Bento's own wheel, before any that is installed here.
        PYTHONPATH=str(site),
        DARKROOM_MODEL="pocket",
        DARKROOM_DEVICE="cpu",
        DARKROOM_DATA=str(tmp_path / "data"),
    )
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "30", str(bento)]
    with running(tmp_path, port, [sys.executable, "-m", "bentoml", "serve", *arguments], env) as served:
        yield served


def test_bento_holds_the_service_and_nothing_else_of_the_checkout(bento: Path) -> None:
    # BentoML writes the bentofile by itself, with the defaults that it filled in.
    packed = {f"{name}/{file}" for name in ("service", "lora_registry") for file in files_under(ROOT / name)}
    assert files_under(bento / "src") == packed | {"bentofile.yaml"}
    assert {path.name for path in bento.iterdir()} == {"apis", "bento.yaml", "env", "README.md", "src"}


def test_bento_holds_the_embedded_model_byte_by_byte(bento: Path) -> None:
    weights = ROOT / "service" / "pocket" / "weights"
    packed = bento / "src" / "service" / "pocket" / "weights"
    assert {"base", "refiner"} <= {path.name for path in packed.iterdir()}
    assert all((packed / f).read_bytes() == (weights / f).read_bytes() for f in files_under(weights))


def test_bento_installs_our_lock_8_bit_adamw_and_the_clients_wheel(bento: Path) -> None:
    python = bento / "env" / "python"
    locked = re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    required = re.findall(r"^[\w.-]+==\S+", (python / "requirements.txt").read_text(), re.MULTILINE)
    assert locked
    assert set(required) == {*locked, "bitsandbytes==0.50.2"}
    assert not (python / "requirements.lock.txt").exists()
    (wheel,) = (python / "wheels").iterdir()
    assert "darkroom/types/generate.py" in zipfile.ZipFile(wheel).namelist()


def test_image_would_run_as_the_deployments_user_and_report_nothing(bento: Path) -> None:
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    deployment = (ROOT / "deploy" / "kustomize" / "base" / "deployment.yaml").read_text()
    (uid,) = re.findall(r"BENTO_USER_UID=(\d+)", dockerfile)
    assert f"runAsUser: {uid}" in deployment
    assert "USER bentoml" in dockerfile
    assert re.search(r"BENTOML_DO_NOT_TRACK=true", dockerfile)
    assert "BENTO_PATH" in dockerfile, "deploy/README.md leads there"


def test_registry_has_its_command_line_where_the_deployments_readme_says(bento: Path, tmp_path: Path) -> None:
    listed = run(
        "-m", "lora_registry", "--data", str(tmp_path), "ls", cwd=bento / "src", env=environment(bento)
    )
    assert listed == "no LoRA\n"


def test_served_bento_draws_compares_and_trains_and_stops_when_told(served: Served) -> None:
    wait_until_ready(served)
    order = {"prompt": "a red circle on a blue background", "num_inference_steps": 4}
    answer = httpx.post(f"{served.url}/v1/generate", json=order, timeout=60)
    assert answer.status_code == 200, f"{answer.text[:2000]}\n{tail(served)}"

    (made,) = GenerateResponse.model_validate_json(answer.content).images
    picture = Image.open(io.BytesIO(base64.b64decode(made.b64)))
    assert picture.size == (made.width, made.height)
    assert len(set(picture.convert("L").tobytes())) > 1, "the picture is flat"

    file = {"Content-Type": "application/octet-stream"}
    published = httpx.post(
        f"{served.url}/v1/loras/ink/versions", content=lora_file(), headers=file, timeout=60
    )
    assert published.status_code == 201, f"{published.text[:2000]}\n{tail(served)}"
    order |= {"loras": [{"ref": "ink"}]}
    answer = httpx.post(f"{served.url}/v1/generate", json=order, timeout=60)
    assert answer.status_code == 200, f"{answer.text[:2000]}\n{tail(served)}"
    assert GenerateResponse.model_validate_json(answer.content).loras[0].ref == "ink@1"

    order = {
        "prompts": [order["prompt"]],
        "seeds": [1, 2],
        "base": {"num_inference_steps": 4},
        "arms": [{"name": "plain"}, {"name": "ink", "set": {"loras": [{"ref": "ink"}]}}],
    }
    with bentoml.SyncHTTPClient(served.url) as native, Darkroom(served.url) as client:
        begun = native.compare(order)
        heard: list[CompareEvent] = []
        found = client.comparisons.wait(begun["id"], on_event=heard.append, timeout_seconds=120)
        assert (found.state, found.arms, len(found)) == ("succeeded", ("plain", "ink"), 4)
        assert sum(event.type == "cell" for event in heard) == 4
        assert found["ink", order["prompts"][0], 1].receipt.loras[0].ref == "ink@1"
        assert found.sheet().data.startswith(b"\x89PNG")

    with Darkroom(served.url) as client:
        job = client.train.negative(
            "wrong",
            synthesis={"prompts": ["deformed"], "guidance_scales": [5], "images_per_prompt": 2},
            recipe={"max_train_steps": 2, "train_batch_size": 1},
            evaluate=False,
        )
        done = client.train.wait(job.id, progress=False, timeout_seconds=180)
        assert done.state == "succeeded", f"{done.problem}\n{tail(served)}"
        assert client.loras.get("wrong").latest.digest == done.digest

    assert served.stop() == 0, tail(served)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/livez", timeout=5)
