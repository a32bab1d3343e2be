"""Where a model's files are: the named presets, a local folder, and what is missing from either."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from service import pocket
from service.errors import ModelNotFound


@dataclass(frozen=True)
class HubSnapshot:
    """One revision of a repository on the hub; of its files only `patterns` are fetched."""

    repository: str
    revision: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    """The places that a model's parts come from; `vae` replaces the base's own where it is given."""

    name: str
    base: Path | HubSnapshot
    refiner: Path | HubSnapshot | None
    vae: Path | HubSnapshot | None = None


_CONFIGS = ("model_index.json", "*/*.json", "*/*.txt")

SDXL = Preset(
    name="sdxl",
    base=HubSnapshot(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        (
            *_CONFIGS,
            "unet/*.fp16.safetensors",
            "text_encoder/*.fp16.safetensors",
            "text_encoder_2/*.fp16.safetensors",
        ),
    ),
    refiner=HubSnapshot(
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "5d4cfe854c9a9a87939ff3653551c2b3c99a4356",
        (*_CONFIGS, "unet/*.fp16.safetensors"),
    ),
    # The stock VAE overflows in float16 and would need a float32 upcast (about 0.1 s an image).
    vae=HubSnapshot(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("config.json", "diffusion_pytorch_model.safetensors"),
    ),
)
POCKET = Preset("pocket", base=pocket.WEIGHTS / "base", refiner=pocket.WEIGHTS / "refiner")


def choose(model: str, *, cuda: bool) -> Preset:
    """The preset that a `model` setting names: `auto`, `pocket`, `sdxl` or a folder with `base/` in it.

    Raises:
        ModelNotFound: the name is no preset, and no such folder exists.
    """
    if model == "auto":
        return SDXL if cuda else POCKET
    if model in ("pocket", "sdxl"):
        return POCKET if model == "pocket" else SDXL
    folder = Path(model)
    if not (folder / "base" / "model_index.json").is_file():
        raise ModelNotFound(
            f"model '{model}' is neither a preset (auto, pocket, sdxl) nor a folder with base/model_index.json in it"
        )
    refiner = folder / "refiner"
    return Preset(folder.resolve().name, folder / "base", refiner if refiner.is_dir() else None)


def locate(place: Path | HubSnapshot, *, offline: bool, token: str | None) -> Path:
    """The local folder of a place, downloaded first where that is allowed and needed.

    Raises:
        ModelNotFound: the snapshot is not in the cache and cannot be fetched.
    """
    if isinstance(place, Path):
        return place
    try:
        return Path(
            snapshot_download(
                place.repository,
                revision=place.revision,
                allow_patterns=list(place.patterns),
                local_files_only=offline,
                token=token,
            )
        )
    except LocalEntryNotFoundError as exc:
        raise ModelNotFound(
            f"{place.repository} at revision {place.revision[:12]} is not in the model cache, and the hub cannot be "
            "asked for it; fill the cache (HF_HOME) or set DARKROOM_MODEL to pocket or to a local folder"
        ) from exc
    except (HfHubHTTPError, OSError) as exc:
        raise ModelNotFound(f"{place.repository} could not be fetched: {type(exc).__name__}: {exc}") from exc


_WEIGHTS_OF = {"text_encoder": "model", "text_encoder_2": "model"}
_CONFIG_OF = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_CONFIG_OF["tokenizer_2"] = _CONFIG_OF["tokenizer"]


def variant_of(folder: Path) -> str | None:
    """`"fp16"` where the folder's weights are saved under that variant, else None."""
    return "fp16" if any(folder.glob("unet/*.fp16.safetensors")) else None


def check(folder: Path, *, given: frozenset[str] = frozenset()) -> None:
    """Return if every file that a pipeline folder needs is there; components in `given` come from elsewhere.

    Raises:
        ModelNotFound: naming the first file that is missing.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelNotFound(f"{folder.name}/model_index.json is missing")
    for name, entry in json.loads(index.read_text()).items():
        if not isinstance(entry, list) or entry[0] is None or name in given:
            continue
        config = folder / name / _CONFIG_OF.get(name, "config.json")
        if not config.is_file():
            raise ModelNotFound(f"{folder.name}/{name}/{config.name} is missing")
        if name in _CONFIG_OF:
            continue
        stem = _WEIGHTS_OF.get(name, "diffusion_pytorch_model")
        if not any((folder / name).glob(f"{stem}*.safetensors")):
            raise ModelNotFound(
                f"{folder.name}/{name}/{stem}.safetensors is missing; only safetensors are read, never pickles"
            )


_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


def fingerprint(folders: list[Path]) -> str:
    """sha256 over names and contents of all weight files in `folders`: the identity of a model.

    The hub's cache names a large file by its sha256, so that gigabytes need not be read again.
    """
    whole = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.safetensors")):
            blob = file.resolve().name
            if not (file.is_symlink() and _BLOB_NAME.fullmatch(blob)):
                with file.open("rb") as stream:
                    blob = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{folder.name}/{file.relative_to(folder)} {blob}\n".encode())
    return whole.hexdigest()
