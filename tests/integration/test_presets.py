"""Where a model's files may be, and what is said of those that are missing, broken or of another kind."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from builders import an_order, run
from service.engine import folders, memory, models, presets
from service.engine.engine import Engine
from service.errors import ModelNotFound
from service.pocket import WEIGHTS

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


class HubCache:
    """A Hugging Face cache as `snapshot_download` leaves it: blobs by their hash, snapshots of links to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, snapshot: presets.HubSnapshot, files: dict[str, Path]) -> Path:
        """The snapshot's folder, with those of the files (path in the repository: source) that we would fetch."""
        repository = self.folder / f"models--{snapshot.repository.replace('/', '--')}"
        root = repository / "snapshots" / snapshot.revision
        for name in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=list(snapshot.patterns)):
            data = files[name].read_bytes()
            large = name.endswith(
                ".safetensors"
            )  # the hub names large files by sha256, small ones as git does
            git = hashlib.sha1(b"blob %d\0" % len(data) + data)
            blob = repository / "blobs" / (hashlib.sha256(data) if large else git).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(blob)
        root.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(snapshot.revision)
        return root


def files_in(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> HubCache:
    """An empty cache, in the place of the machine's own."""
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(folder.parent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return HubCache(folder)


@pytest.fixture
def sdxl(cache) -> HubCache:
    """A cache with everything that the sdxl preset fetches, made of the pocket model's weights."""
    cache.add(presets.SDXL.base, files_in(WEIGHTS / "base"))
    cache.add(presets.SDXL.refiner, files_in(WEIGHTS / "refiner"))
    vae = WEIGHTS / "base" / "vae"
    weights = vae / "diffusion_pytorch_model.fp16.safetensors"
    cache.add(presets.SDXL.vae, {"config.json": vae / "config.json", VAE_WEIGHTS: weights})
    return cache


@pytest.fixture
def folder(tmp_path) -> Path:
    """A local copy of the pocket model that a test may damage."""
    shutil.copytree(WEIGHTS, tmp_path / "ours")
    return tmp_path / "ours"


def load(model: str, **options) -> models.Models:
    return models.load(presets.choose(model, cuda=False), **CPU, offline=True, **options)


def picture(loaded: models.Models, **changes):
    engine = Engine(loaded, memory.PROFILES["24"])
    engine.start()
    try:
        return run(engine, an_order(**changes)).pictures[0].pixels_HWC
    finally:
        engine.close()


def test_names_choose_presets_and_auto_goes_by_the_device(folder):
    assert presets.choose("auto", cuda=True) is presets.choose("sdxl", cuda=False) is presets.SDXL
    assert presets.choose("auto", cuda=False) is presets.choose("pocket", cuda=True) is presets.POCKET
    local = presets.choose(str(folder), cuda=False)
    assert (local.name, local.base, local.refiner) == ("ours", folder / "base", folder / "refiner")


def test_a_name_that_is_neither_a_preset_nor_a_model_is_refused(tmp_path):
    for name in ("sdxxl", str(tmp_path), "/nowhere"):
        with pytest.raises(ModelNotFound, match="neither a preset"):
            presets.choose(name, cuda=False)


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_missing_file_is_named(folder, missing):
    file = folder / "base" / missing
    if file.suffix == ".safetensors":
        (file.parent / f"{file.stem}.fp16.safetensors").unlink()
    else:
        file.unlink()
    with pytest.raises(
        ModelNotFound, match=f"base/{missing} is missing".replace(".safetensors", r"(\.fp16)?\.safetensors")
    ):
        folders.weights_of(folder / "base")


def test_what_is_given_from_elsewhere_need_not_be_there(folder):
    shutil.rmtree(folder / "base" / "vae")
    folders.weights_of(folder / "base", given=frozenset({"vae"}))


def test_a_pickle_is_no_weights_file(folder):
    unet = folder / "base" / "unet"
    (unet / "diffusion_pytorch_model.fp16.safetensors").rename(unet / "diffusion_pytorch_model.fp16.bin")
    with pytest.raises(ModelNotFound, match="only safetensors are read, never pickles"):
        load(str(folder))


@pytest.mark.parametrize("part", ["base", "refiner", "vae"])
def test_an_empty_cache_names_repository_and_revision(cache, part):
    place = getattr(presets.SDXL, part)
    with pytest.raises(ModelNotFound) as caught:
        presets.locate(place, offline=True, token=None)
    assert place.repository in str(caught.value)
    assert place.revision[:12] in str(caught.value)
    assert "HF_HOME" in str(caught.value)


def test_a_cache_that_lacks_a_file_names_it(cache):
    files = files_in(WEIGHTS / "base")
    del files["unet/diffusion_pytorch_model.fp16.safetensors"]
    cache.add(presets.SDXL.base, files)
    cache.add(presets.SDXL.refiner, files_in(WEIGHTS / "refiner"))
    cache.add(presets.SDXL.vae, {})
    with pytest.raises(ModelNotFound, match=r"unet/diffusion_pytorch_model\.fp16\.safetensors is missing"):
        load("sdxl")


def test_the_sdxl_preset_makes_a_picture_from_a_cache_alone(sdxl, models):
    loaded = load("sdxl")
    assert (loaded.name, loaded.has_refiner, loaded.requires_aesthetics_score) == ("sdxl", True, True)
    fetched = {file.name for file in sdxl.folder.rglob("snapshots/*/vae/*")}
    assert fetched == {"config.json"}  # the base's own VAE was never asked for
    assert (picture(loaded, hand_over=0.5) == picture(models, hand_over=0.5)).all()


def test_only_the_base_is_looked_for_where_no_refiner_is_wanted(sdxl):
    shutil.rmtree(sdxl.folder / "models--stabilityai--stable-diffusion-xl-refiner-1.0")
    loaded = load("sdxl", refiner=False)
    assert not loaded.has_refiner
    with pytest.raises(ModelNotFound, match=r"stable-diffusion-xl-refiner-1\.0"):
        load("sdxl")


def fingerprint(folder):
    return folders.fingerprint(
        folders.weights_of(folder, given=frozenset({"vae", "text_encoder_2", "tokenizer_2"}))
    )


def test_links_into_a_cache_and_plain_files_have_one_fingerprint(sdxl, tmp_path):
    (cached,) = sdxl.folder.glob(f"*/snapshots/{presets.SDXL.base.revision}")
    copy = tmp_path / "another name"
    shutil.copytree(cached, copy)
    assert all(file.is_symlink() for file in cached.rglob("*.safetensors"))
    assert not any(file.is_symlink() for file in copy.rglob("*"))
    assert fingerprint(cached) == fingerprint(copy)
    assert fingerprint(cached) != fingerprint(WEIGHTS / "refiner")


def test_other_weights_have_another_fingerprint(folder):
    before = fingerprint(folder / "base")
    weights = folder / "base" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(folder / "base") != before


def test_a_folder_without_a_refiner_serves_the_base(folder, models):
    shutil.rmtree(folder / "refiner")
    loaded = load(str(folder))
    assert (loaded.name, loaded.has_refiner) == ("ours", False)
    assert (picture(loaded) == picture(replace(models, unets={"base": models.unets["base"]}))).all()


def test_weights_without_a_variant_in_their_name_load_too(folder, models):
    for file in folder.rglob("*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    assert (picture(load(str(folder))) == picture(models)).all()


def test_a_model_of_another_kind_is_refused_readably(folder):
    shutil.rmtree(folder / "base" / "text_encoder_2")
    shutil.rmtree(folder / "base" / "tokenizer_2")
    index = json.loads((folder / "base" / "model_index.json").read_text())
    del index["text_encoder_2"], index["tokenizer_2"]
    index["_class_name"] = "StableDiffusionPipeline"
    (folder / "base" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelNotFound, match="base holds a StableDiffusionPipeline; this service runs SDXL"
    ) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("damage", ["truncated", "not safetensors", "empty"])
def test_damaged_weights_are_refused_by_name(folder, part, damage):
    (weights,) = (folder / "base" / part).glob("*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes({"truncated": data[:1000], "not safetensors": b"x" * 100, "empty": b""}[damage])
    with pytest.raises(ModelNotFound, match="base is not an SDXL model"):
        load(str(folder))


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_config_that_is_not_json_is_refused(folder, file):
    (folder / "base" / file).write_text("{")
    with pytest.raises(ModelNotFound):
        load(str(folder))
