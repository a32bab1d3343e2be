"""The models that people make LoRAs for, by their public configs, and the signatures of those that have another form.

A file for one of them that this service does not run is refused by that name.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from lora_registry.base_model import BaseModel
from lora_registry.header import Tensor
from lora_registry.records import MAX_KEYS_SHOWN, Reason

_CLIP_L: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "architectures": ["CLIPTextModel"],
}
_BIG_G: Final = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "architectures": ["CLIPTextModelWithProjection"],
}
_CLIP_H: Final = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "architectures": ["CLIPTextModel"],
}
_SD_UNET: Final[Mapping[str, Any]] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
}


@cache
def sdxl() -> BaseModel:
    """Stable Diffusion XL 1.0, the base."""
    unet = {
        **_SD_UNET,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": 2816,
    }
    return BaseModel.from_configs("SDXL 1.0", unet, {"text_encoder": _CLIP_L, "text_encoder_2": _BIG_G})


@cache
def sdxl_refiner() -> BaseModel:
    """Stable Diffusion XL 1.0, the refiner."""
    unet = {
        **_SD_UNET,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": 2560,
    }
    return BaseModel.from_configs("SDXL refiner 1.0", unet, {"text_encoder_2": _BIG_G})


@cache
def sd1() -> BaseModel:
    """Stable Diffusion 1.x."""
    return BaseModel.from_configs(
        "Stable Diffusion 1.x", {**_SD_UNET, "cross_attention_dim": 768}, {"text_encoder": _CLIP_L}
    )


@cache
def sd2() -> BaseModel:
    """Stable Diffusion 2.x."""
    unet = {**_SD_UNET, "cross_attention_dim": 1024, "use_linear_projection": True}
    return BaseModel.from_configs("Stable Diffusion 2.x", unet, {"text_encoder": _CLIP_H})


def known_models() -> Mapping[str, BaseModel]:
    """The models that a file is recognised as, by the code of the reason that refuses it."""
    return {
        "family.sdxl": sdxl(),
        "family.sdxl_refiner": sdxl_refiner(),
        "family.sd1": sd1(),
        "family.sd2": sd2(),
    }


_FLUX: Final = re.compile(r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]")
_SD3: Final = re.compile(r"(^|[._])joint_blocks[._]")
_TRANSFORMER: Final = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.|lora_transformer_|)transformer_blocks[._]\d+[._]attn[._]"
)
_FLUX_WIDTH: Final = 3072

_OURS: Final = re.compile(r"\.lora_|\.hada_|\.lokr_|\.alpha$")
_METHODS: Final = (
    ("format.oft", r"\.oft_(blocks|diag|R|r|block_size)\b", "an OFT adapter (it rotates weights)"),
    ("format.glora", r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$", "a GLoRA adapter"),
    ("format.ia3", r"\.on_input$", "an IA3 adapter"),
    ("format.full_difference", r"\.diff(_b)?$", "a full weight difference"),
    ("format.norm", r"\.(w_norm|b_norm)$", "a trained norm layer"),
    ("format.control", r"^lora_controlnet|^(control_model|controlnet)[._]", "a control network"),
    ("format.ip_adapter", r"^(ip_adapter|image_proj)\.", "an IP-Adapter"),
    ("format.checkpoint", r"^(model\.diffusion_model|first_stage|cond_stage|conditioner)[._]", "a full checkpoint"),
)  # fmt: skip


def foreign_form(tensors: Mapping[str, Tensor]) -> tuple[Reason, ...]:
    """Why these tensors can be no LoRA for any model of the UNet kind; empty where they may be one."""
    found = []
    others = [key for key in tensors if not _OURS.search(key)]
    for code, pattern, what in _METHODS:
        keys = [key for key in others if re.search(pattern, key)]
        if keys:
            message = f"it has the tensors of {what}, which is not supported"
            found.append(Reason(code, message, tuple(keys[:MAX_KEYS_SHOWN]), len(keys)))
    flux = [key for key in tensors if _FLUX.search(key)]
    sd3 = [key for key in tensors if _SD3.search(key)]
    for key, tensor in tensors.items():
        if (
            _TRANSFORMER.match(key)
            and key.endswith((".lora_A.weight", ".lora_down.weight"))
            and len(tensor.shape) == 2
        ):
            (flux if tensor.shape[1] == _FLUX_WIDTH else sd3).append(key)
    single = {
        tensors[key].shape[-1]
        for key in tensors
        if key in ("emb_params", "string_to_param") and tensors[key].shape
    }
    for width, code, family in (
        (768, "family.sd1", "Stable Diffusion 1.x"),
        (1024, "family.sd2", "Stable Diffusion 2.x"),
    ):
        if width in single:
            found.append(Reason(code, f"it is an embedding for {family}", ("emb_params",), 1))
    for code, family, keys in (
        ("family.flux", "Flux", flux),
        ("family.sd3", "Stable Diffusion 3", [] if flux else sd3),
    ):
        if keys:
            found.append(Reason(code, f"it was made for {family}", tuple(keys[:MAX_KEYS_SHOWN]), len(keys)))
    return tuple(found)
