"""One tensor's name, taken apart: which layer of which part of the model, and which role in the decomposition.

Nothing here knows a particular model; `modules.py` looks the layers up.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Part = Literal["unet", "text_encoder", "text_encoder_2", "only_text_encoder", "some_text_encoder"]
"""`only_text_encoder` is kohya's `lora_te_`, of models with one; `some_text_encoder` has to be told by its shape."""
Naming = Literal["kohya", "diffusers", "comfy", "bare"]


@dataclass(frozen=True)
class Slot:
    """Where a tensor belongs: `path` is the layer as the file spells it, `spelling` how the role is written.

    `spelling` is `peft`, `legacy` or `kohya`; empty for roles that all of them write alike (alpha, LoHa, LoKr).
    """

    part: Part
    path: str
    role: str
    naming: Naming
    spelling: str


_KOHYA_PARTS: Final[tuple[tuple[str, Part], ...]] = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "only_text_encoder"),
)
_DOTTED_PARTS: Final[tuple[tuple[str, Part], ...]] = (
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
)
_WRAPPER: Final = "base_model.model."
_COMFY: Final = "diffusion_model."

_ROLES: Final[tuple[tuple[re.Pattern[str], str, str], ...]] = tuple(
    (re.compile(rf"{pattern}\Z"), role, spelling)
    for pattern, role, spelling in (
        (r"\.lora_A(?:\.default)?\.weight", "down", "peft"),
        (r"\.lora_B(?:\.default)?\.weight", "up", "peft"),
        (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude", "peft"),
        (r"\.lora_down\.weight", "down", "kohya"),
        (r"\.lora_up\.weight", "up", "kohya"),
        (r"\.lora_mid\.weight", "mid", "kohya"),
        (r"\.dora_scale", "dora_scale", ""),
        (r"\.alpha", "alpha", ""),
        (r"\.lora(?:_linear_layer)?\.down\.weight", "down", "legacy"),
        (r"\.lora(?:_linear_layer)?\.up\.weight", "up", "legacy"),
        (r"\.(hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)|lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2))", "", ""),
    )
)
_ROLE_BEGINS: Final = re.compile(r"\.(?:lora_|lora\.|dora_scale|alpha|hada_|lokr_)")
_PROCESSOR: Final = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
"""Attention processors of 2023: the projection's name is part of the role's."""
_IN_ENCODER: Final = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_ENCODER_PATH: Final = re.compile(r"(text_model\.)?encoder\.layers\.|text_projection$")


def parse_key(key: str) -> Slot | None:
    """Where a tensor of this name belongs; None where the name is not one of a LoRA."""
    if "_lora." in key and (match := _PROCESSOR.fullmatch(key)):
        part, path, naming = _place(match[1])
        if naming == "kohya":
            return None
        projection = (
            ("to_out.0" if match[2] == "out" else f"to_{match[2]}")
            if part == "unet"
            else _IN_ENCODER[match[2]]
        )
        return Slot(part, f"{path}.{projection}", match[3], naming, "legacy")
    begins = _ROLE_BEGINS.search(key)
    if begins is None:
        return None
    for pattern, role, spelling in _ROLES:
        if (match := pattern.search(key, begins.start())) and match.start() > 0:
            part, path, naming = _place(key[: match.start()])
            return Slot(part, path, role or match[1], naming, spelling)
    return None


def _place(path: str) -> tuple[Part, str, Naming]:
    """The part of the model, the path within it, and the way of naming."""
    for prefix, part in _KOHYA_PARTS:
        if path.startswith(prefix):
            return part, path.removeprefix(prefix), "kohya"
    path = path.removeprefix(_WRAPPER)
    if path.startswith(_COMFY):
        return "unet", path.removeprefix(_COMFY), "comfy"
    for prefix, part in _DOTTED_PARTS:
        if path.startswith(prefix):
            return part, path.removeprefix(prefix).removeprefix(_WRAPPER), "diffusers"
    return ("some_text_encoder" if _ENCODER_PATH.match(path) else "unet"), path, "bare"
