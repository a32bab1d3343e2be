"""What a file says of itself: read, never trusted. What leaves the registry is on an allow-list.

Trainers write folder names, user names and prompts into their files, so an entry is published only where its key is
listed here and its value has the form that belongs to the key.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lora_registry.base_model import BaseModel
from lora_registry.findings import Findings
from lora_registry.records import Component

MAX_WORDS: Final = 32
MAX_WORD_CHARACTERS: Final = 100
MIN_TAGGED_IMAGES: Final = 2

_NUMBER: Final = r"-?\d{1,12}(\.\d{1,12})?([eE][+-]?\d{1,3})?"
_WORDS: Final = r"[A-Za-z0-9_.-]{1,60}"
_ALLOWED: Final[Mapping[str, re.Pattern[str]]] = {
    key: re.compile(pattern)
    for pattern, keys in {
        _NUMBER: (
            "ss_network_dim ss_network_alpha ss_steps ss_max_train_steps ss_num_train_images ss_epoch "
            "ss_num_epochs ss_learning_rate ss_unet_lr ss_text_encoder_lr ss_batch_size_per_device ss_noise_offset "
            "ss_min_snr_gamma ss_clip_skip ss_prior_loss_weight modelspec.encoder_layer"
        ),
        _WORDS: (
            "ss_base_model_version ss_network_module ss_lr_scheduler ss_mixed_precision modelspec.sai_model_spec "
            "modelspec.prediction_type modelspec.license modelspec.date"
        ),
        r"[a-z0-9.-]{1,60}(/[a-z0-9.-]{1,20})?": "modelspec.architecture",
        r"\(?\d{2,5}(, ?|x)\d{2,5}\)?": "ss_resolution modelspec.resolution",
        r"True|False": "ss_v2 ss_gradient_checkpointing ss_cache_latents ss_full_fp16",
    }.items()
    for key in keys.split()
}  # fmt: skip
_WORD: Final = re.compile(r"[^/\\]+")


def published(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The entries that may leave the registry."""
    return {
        key: value for key, value in metadata.items() if key in _ALLOWED and _ALLOWED[key].fullmatch(value)
    }


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What to write into a prompt to call on the LoRA: what the file names, and tags that every image had."""
    named = _split(metadata.get("modelspec.trigger_phrase", ""))
    return clean_words((*named, *_tags_of_every_image(metadata)))


def tags(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The tags that the author gave the file."""
    return clean_words(_split(metadata.get("modelspec.tags", "")))


def clean_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are plain, short and not paths, without doubles, at most 32."""
    stripped = (" ".join(word.split()) for word in words)
    good = [word for word in stripped if _is_word(word)]
    return tuple(dict.fromkeys(good))[:MAX_WORDS]


def _is_word(word: str) -> bool:
    # Not printable are control characters and halves of surrogate pairs, which no database takes.
    return len(word) <= MAX_WORD_CHARACTERS and word.isprintable() and bool(_WORD.fullmatch(word))


def disagreements(metadata: Mapping[str, str], base: BaseModel, auto_v3: str, findings: Findings) -> None:
    """Note where the file's own words contradict what its shapes and bytes show."""
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "")
    says_other = re.match(r"sd_v[12]|flux|sd3", version) or re.match(
        r"stable-diffusion-(v1|v2|3)|flux|stable-diffusion-xl-v1-refiner", architecture
    )
    if says_other and "XL" in base.name.upper():
        findings.add(
            "metadata.base_model", f"its metadata name another base model, its shapes fit {base.name}"
        )
    if metadata.get("modelspec.prediction_type", "epsilon") not in ("epsilon", "eps"):
        findings.add("metadata.prediction_type", "its metadata name a prediction type other than epsilon")
    written = metadata.get("sshs_model_hash", "")
    if written and auto_v3 and not written.lower().startswith(auto_v3):
        findings.add("metadata.hash", "the hash in its metadata is not the hash of its tensors")


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's configuration as diffusers stores it in a file: it decides alpha, so it is read strictly.

    `entries` are by component; empty for a file without one.
    """

    entries: Mapping[Component, Mapping[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def uses_dora(self, component: Component) -> bool:
        return self.entries.get(component, {}).get("use_dora") is True

    def alpha(self, component: Component, layer: str, rank: int, findings: Findings) -> float:
        """The alpha of one layer, such that alpha / rank is its scale; the rank where the file says nothing."""
        entry = self.entries.get(component)
        if not entry or not rank:
            return float(rank)
        configured = _for_layer(entry.get("rank_pattern"), layer, entry.get("r", rank))
        if configured != rank:
            findings.add(
                "metadata.adapter_config",
                f"its adapter configuration says rank {configured}, a tensor {rank}",
                [layer],
            )
        alpha = _for_layer(entry.get("alpha_pattern"), layer, entry.get("lora_alpha", rank))
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
            findings.add(
                "metadata.adapter_config",
                "its adapter configuration has an alpha that is no positive number",
                [layer],
            )
            return float(rank)
        # Rank-stabilised LoRA divides by the root of the rank.
        return float(alpha * rank**0.5) if entry.get("use_rslora") is True else float(alpha)


def adapter_config(metadata: Mapping[str, str], findings: Findings) -> AdapterConfig:
    """The adapter configuration of a file, or an empty one."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return AdapterConfig()
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        findings.add(
            "metadata.adapter_config",
            "its adapter configuration (lora_adapter_metadata) is not a JSON object",
        )
        return AdapterConfig()
    by_component: dict[Component, dict[str, Any]] = {}
    for key, value in entries.items():
        part, dot, name = str(key).partition(".")
        component: Component = "unet"
        if dot and part in ("text_encoder", "text_encoder_2"):
            component = "text_encoder" if part == "text_encoder" else "text_encoder_2"
        elif not (dot and part == "unet"):
            name = str(key)
        by_component.setdefault(component, {})[name] = value
    for entry in by_component.values():
        for pattern in (*_keys(entry.get("rank_pattern")), *_keys(entry.get("alpha_pattern"))):
            if not re.fullmatch(r"\^?[A-Za-z0-9_.]+", pattern):
                findings.add(
                    "metadata.adapter_config",
                    "its adapter configuration has a pattern that is no layer name",
                    [pattern[:200]],
                )
    return AdapterConfig(by_component)


def _for_layer(patterns: object, layer: str, default: Any) -> Any:
    """The value for the first pattern that is the layer's name or the end of it, as PEFT matches."""
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            name = str(pattern).removeprefix("^")
            if layer == name or (not str(pattern).startswith("^") and layer.endswith(f".{name}")):
                return value
    return default


def _keys(patterns: object) -> tuple[str, ...]:
    return tuple(str(key) for key in patterns) if isinstance(patterns, dict) else ()


def _split(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[,;\n]", text[:10_000]))


def _tags_of_every_image(metadata: Mapping[str, str]) -> tuple[str, ...]:
    try:
        frequencies = json.loads(metadata.get("ss_tag_frequency", "{}"))
        folders = json.loads(metadata.get("ss_dataset_dirs", "{}"))
    except (ValueError, RecursionError):
        return ()
    if not isinstance(frequencies, dict) or not isinstance(folders, dict):
        return ()
    words: list[str] = []
    for folder, counts in frequencies.items():
        described = folders.get(folder)
        images = described.get("img_count") if isinstance(described, dict) else None
        if isinstance(counts, dict) and isinstance(images, int) and images >= MIN_TAGGED_IMAGES:
            words += [str(tag) for tag, count in counts.items() if count == images]
    return tuple(words)
