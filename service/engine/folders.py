"""What a model's folder holds: which files are read from it, what is missing, and whose weights they are."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from service.errors import ModelNotFound

_CONFIG_OF = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
_WEIGHTS_OF = {"text_encoder": "model", "text_encoder_2": "model"}
_WEIGHTS = "diffusion_pytorch_model"


def variant_of(folder: Path) -> str | None:
    """`"fp16"` where the folder's weights are saved under that variant, else None."""
    return "fp16" if any(folder.glob("*/*.fp16.safetensors")) else None


def weights_of(folder: Path, *, given: frozenset[str] = frozenset()) -> dict[str, Path]:
    """The weight files that an SDXL pipeline folder is loaded from, once all that it needs is known to be there.

    Keys are `component/file`. Components in `given` come from elsewhere and need not be there.

    Raises:
        ModelNotFound: it is no SDXL pipeline, or naming the first file that is missing.
    """
    components = _components(folder)
    variant = variant_of(folder)
    files: dict[str, Path] = {}
    for name in sorted(components - given):
        config = folder / name / _CONFIG_OF.get(name, "config.json")
        if not config.is_file():
            raise ModelNotFound(f"{folder.name}/{name}/{config.name} is missing")
        if name not in _CONFIG_OF:
            found = component_weights(folder / name, _WEIGHTS_OF.get(name, _WEIGHTS), variant)
            files |= {f"{name}/{file}": path for file, path in found.items()}
    return files


def component_weights(folder: Path, stem: str = _WEIGHTS, variant: str | None = None) -> dict[str, Path]:
    """The safetensors files of one component by name, in one piece or in shards.

    Raises:
        ModelNotFound: there are none.
    """
    prefix = f"{stem}.{variant}" if variant else stem
    files = {
        path.name: path
        for path in sorted(folder.glob(f"{prefix}*.safetensors"))
        if variant or ".fp16" not in path.name
    }
    if not files:
        raise ModelNotFound(
            f"{folder.parent.name}/{folder.name}/{prefix}.safetensors is missing; "
            "only safetensors are read, never pickles"
        )
    return files


def _components(folder: Path) -> frozenset[str]:
    """The names of the parts that an SDXL pipeline's index lists."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelNotFound(f"{folder.name}/model_index.json is missing")
    try:
        listed = json.loads(index.read_text())
        kind = str(listed["_class_name"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ModelNotFound(f"{folder.name}/model_index.json cannot be read as a pipeline's index") from exc
    if not kind.startswith("StableDiffusionXL"):
        raise ModelNotFound(
            f"{folder.name} holds a {kind}; this service runs SDXL, a StableDiffusionXLPipeline"
        )
    return frozenset(
        name for name, entry in listed.items() if isinstance(entry, list) and entry[0] is not None
    )


_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


def fingerprint(files: Mapping[str, Path]) -> str:
    """sha256 over the names and contents of weight files: the identity of a model, wherever its folders lie.

    The hub's cache names a large file by its sha256, so that gigabytes need not be read again.
    """
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        blob = path.resolve().name
        if not (path.is_symlink() and _BLOB_NAME.fullmatch(blob)):
            with path.open("rb") as stream:
                blob = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{name} {blob}\n".encode())
    return whole.hexdigest()
