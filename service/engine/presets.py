"""Where a model's files are: the named presets, a local folder, and what is missing from either."""

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
