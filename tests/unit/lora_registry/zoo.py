"""The zoo: files that must come in and files that must stay out, each with what intake has to say about it."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO

import numpy as np

from lora_registry.base_model import BaseModel
from lora_registry.families import sd1, sd2, sdxl, sdxl_refiner
from unit.lora_registry.makers import (
    BASES,
    Raw,
    Tensors,
    bfloat16,
    clip_pair,
    kohya,
    layers,
    legacy,
    locon_mid,
    loha,
    lokr,
    numbers,
    peft,
    peft_dora,
    pocket,
    safetensors,
    with_dora_scale,
    with_header,
)


@dataclass(frozen=True)
class Specimen:
    """One file. `codes` are those of its refusal, or of its warnings where it is accepted."""

    name: str
    data: bytes
    serves: str
    codes: frozenset[str]
    refused: bool
    format: str = ""
    kind: str = "lora"
    components: tuple[str, ...] = ("unet",)
    modules: int = 0
    embeddings: int = 0
    ranks: frozenset[int] = frozenset()
    scales: frozenset[float] = field(default_factory=frozenset)

    def __str__(self) -> str:
        return self.name


Recipe = Callable[[], Specimen]
_RECIPES: dict[str, Recipe] = {}


def _good(
    name: str,
    make: Callable[[BaseModel], Tensors | bytes],
    format: str,
    modules: int | Callable[[BaseModel], int],
    *warnings: str,
    serves: str = "pocket",
    metadata: dict[str, str] | None = None,
    **facts: object,
) -> None:
    def recipe() -> Specimen:
        base = BASES[serves]()
        made = make(base)
        count = modules if isinstance(modules, int) else modules(base)
        data = made if isinstance(made, bytes) else safetensors(made, metadata)
        return Specimen(name, data, serves, frozenset(warnings), False, format, modules=count, **facts)  # type: ignore[arg-type]

    assert name not in _RECIPES
    _RECIPES[name] = recipe


def _bad(
    name: str,
    make: Callable[[BaseModel], Tensors | bytes],
    *codes: str,
    serves: str = "pocket",
    metadata: dict[str, str] | None = None,
) -> None:
    def recipe() -> Specimen:
        made = make(BASES[serves]())
        data = made if isinstance(made, bytes) else safetensors(made, metadata)
        return Specimen(name, data, serves, frozenset(codes), True)

    assert name not in _RECIPES
    _RECIPES[name] = recipe


def zoo() -> Iterator[str]:
    """The names of all specimens."""
    return iter(_RECIPES)


@cache
def specimen(name: str) -> Specimen:
    return _RECIPES[name]()


FF, CONV, SHORTCUT, TEXT = "ff.net", "resnets.0.conv1", "conv_shortcut", "encoder.layers"
TE1, TE2 = "text_encoder", "text_encoder_2"

# What people have, and must be able to use.

_good("peft", lambda b: peft(layers(b)), "diffusers-peft", 6, ranks=frozenset({4}), scales=frozenset({1.0}))
_good("peft sdxl", lambda b: peft(layers(b), rank=2), "diffusers-peft", 6, serves="sdxl")
_good("peft float32", lambda b: peft(layers(b), dtype="<f4"), "diffusers-peft", 6)
_good(
    "peft bfloat16",
    lambda b: {key: bfloat16(value) for key, value in peft(layers(b)).items()},
    "diffusers-peft",
    6,
)
_good("peft every linear layer", lambda b: peft(layers(b, FF, count=8)), "diffusers-peft", 8)
_good("peft convolutions", lambda b: peft(layers(b, CONV) | layers(b, SHORTCUT)), "diffusers-peft", 12)
_good(
    "peft with both text encoders",
    lambda b: (
        peft(layers(b))
        | peft(layers(b, TEXT, TE1), "text_encoder.")
        | peft(layers(b, TEXT, TE2), "text_encoder_2.")
    ),
    "diffusers-peft",
    18,
    components=("unet", TE1, TE2),
)
_good(
    "peft with transformers 5 names",
    lambda b: {
        k.replace("text_model.", ""): v for k, v in peft(layers(b, TEXT, TE1), "text_encoder.").items()
    },
    "diffusers-peft",
    6,
    components=(TE1,),
)
_good(
    "peft with adapter names",
    lambda b: {k.replace(".weight", ".default.weight"): v for k, v in peft(layers(b)).items()},
    "diffusers-peft",
    6,
)
_good(
    "peft with alpha in its configuration",
    lambda b: peft(layers(b)),
    "diffusers-peft",
    6,
    metadata={"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})},
    scales=frozenset({2.0}),
)
_good(
    "peft with an alpha pattern and rank-stabilised",
    lambda b: peft(layers(b)),
    "diffusers-peft",
    6,
    metadata={
        "lora_adapter_metadata": json.dumps(
            {
                "unet.r": 4,
                "unet.lora_alpha": 8,
                "unet.use_rslora": True,
                "unet.alpha_pattern": {"attn1.to_q": 2},
            }
        )
    },
    scales=frozenset({1.0, 4.0}),
)
_good(
    "peft text encoder projection",
    lambda b: peft(layers(b, "text_projection", TE2), "text_encoder_2."),
    "diffusers-peft",
    1,
    components=(TE2,),
)
_good("peft without prefix", lambda b: peft(layers(b), ""), "bare-peft", 6, "alpha.assumed")
_good("base_model.model.", lambda b: peft(layers(b), "base_model.model."), "bare-peft", 6, "alpha.assumed")
_good("unet.base_model.model.", lambda b: peft(layers(b), "unet.base_model.model."), "diffusers-peft", 6)
_good(
    "bare text encoder told by its shape",
    lambda b: peft(layers(b, TEXT, TE2), "base_model.model."),
    "bare-peft",
    6,
    "alpha.assumed",
    "component.by_shape",
    components=(TE2,),
)
_good("legacy attention processors", lambda b: legacy(layers(b)), "diffusers-legacy", 6)
_good(
    "legacy without prefix (cog-sdxl)",
    lambda b: legacy(layers(b), "", rank=2),
    "bare-legacy",
    6,
    "alpha.assumed",
    serves="sdxl",
)
_good(
    "legacy lora.down in a text encoder",
    lambda b: {
        f"text_encoder.{name}.lora_linear_layer.{half}.weight": tensor
        for name, layer in layers(b, "q_proj", TE1).items()
        for half, tensor in (("down", numbers(4, layer.inputs)), ("up", numbers(layer.outputs, 4)))
    },
    "diffusers-legacy",
    lambda b: len(layers(b, "q_proj", TE1)),
    components=(TE1,),
)
_good(
    "kohya sgm", lambda b: kohya(b, layers(b)), "kohya-sgm", 6, ranks=frozenset({4}), scales=frozenset({0.5})
)
_good("kohya sgm sdxl", lambda b: kohya(b, layers(b), ranks=[2]), "kohya-sgm", 6, serves="sdxl")
_good("kohya diffusers names", lambda b: kohya(b, layers(b), naming="diffusers"), "kohya-diffusers", 6)
_good(
    "kohya mixed alpha and rank",
    lambda b: kohya(b, layers(b), ranks=[1, 2, 8], alphas=[1.0, 4.0, 4.0]),
    "kohya-sgm",
    6,
    ranks=frozenset({1, 2, 8}),
    scales=frozenset({1.0, 2.0, 0.5}),
)
_good(
    "kohya without alpha",
    lambda b: kohya(b, layers(b), alphas=[None]),
    "kohya-sgm",
    6,
    scales=frozenset({1.0}),
)
_good(
    "kohya with some alphas",
    lambda b: kohya(b, layers(b), alphas=[1.0, None]),
    "kohya-sgm",
    6,
    "alpha.partial",
    scales=frozenset({1.0, 0.25}),
)
_good(
    "kohya with text encoders",
    lambda b: kohya(b, layers(b)) | kohya(b, layers(b, TEXT, TE1), TE1) | kohya(b, layers(b, TEXT, TE2), TE2),
    "kohya-sgm",
    18,
    components=("unet", TE1, TE2),
)
_good(
    "kohya text encoders alone",
    lambda b: kohya(b, layers(b, TEXT, TE2), TE2),
    "kohya-text-encoders",
    6,
    components=(TE2,),
)
_good(
    "kohya everything",
    lambda b: kohya(b, dict(b.layers["unet"]), ranks=[1]),
    "kohya-sgm",
    lambda b: len(b.layers["unet"]),
)
_good(
    "kohya linear layers as 1 x 1 convolutions",
    lambda b: {
        key: value.reshape(*value.shape, 1, 1) if value.ndim == 2 else value
        for key, value in kohya(b, layers(b, "proj_in")).items()
    },
    "kohya-sgm",
    6,
)
_good("kohya dora", lambda b: with_dora_scale(kohya(b, layers(b))), "kohya-sgm", 6)
_good("kohya dora by inputs", lambda b: with_dora_scale(kohya(b, layers(b)), by_inputs=True), "kohya-sgm", 6)
_good("kohya dora of convolutions", lambda b: with_dora_scale(kohya(b, layers(b, CONV))), "kohya-sgm", 6)
_good("peft dora", lambda b: peft_dora(layers(b)), "diffusers-peft", 6)
_good("peft dora of convolutions", lambda b: peft_dora(layers(b, CONV)), "diffusers-peft", 6)
_good("locon", lambda b: kohya(b, layers(b, CONV)), "kohya-sgm", 6)
_good("locon with lora_mid", lambda b: locon_mid(b, layers(b, CONV)), "kohya-sgm", 6)
_good("loha", lambda b: loha(b, layers(b) | layers(b, CONV)), "kohya-sgm", 12, ranks=frozenset({3}))
_good("loha with tucker cores", lambda b: loha(b, layers(b, CONV), tucker=True), "kohya-sgm", 6)
_good("lokr", lambda b: lokr(b, layers(b) | layers(b, CONV)), "kohya-sgm", 12, ranks=frozenset({2}))
_good(
    "lokr with full matrices",
    lambda b: lokr(b, layers(b) | layers(b, CONV), full=True),
    "kohya-sgm",
    12,
    ranks=frozenset({0}),
    scales=frozenset({1.0}),
)
_good("lora and loha in one file", lambda b: kohya(b, layers(b)) | loha(b, layers(b, CONV)), "kohya-sgm", 12)
_good(
    "comfy's dotted sgm names",
    lambda b: {
        f"diffusion_model.{b.sgm[name]}.{half}.weight": tensor
        for name, layer in layers(b).items()
        for half, tensor in (("lora_A", numbers(4, layer.inputs)), ("lora_B", numbers(layer.outputs, 4)))
    },
    "comfy-sgm",
    6,
)
_EMBEDDED: dict[str, object] = {"kind": "embedding", "components": (TE1, TE2)}
_good("embedding clip_l and clip_g", lambda b: clip_pair(b), "clip-l-g", 0, embeddings=2, **_EMBEDDED)
_good(
    "embedding text_encoders_0/1",
    lambda b: clip_pair(b, names=("text_encoders_0", "text_encoders_1")),
    "text-encoders",
    0,
    embeddings=2,
    **_EMBEDDED,
)
_good(
    "embedding bundle_emb alone",
    lambda b: clip_pair(b, "bundle_emb.sks."),
    "bundle-emb",
    0,
    embeddings=2,
    **_EMBEDDED,
)
_good(
    "embedding learned_embeds",
    lambda b: {"<sks>": numbers(b.token_widths[TE1])},
    "learned-embeds",
    0,
    "embedding.one_encoder",
    kind="embedding",
    components=(TE1,),
    embeddings=1,
)
_good(
    "embedding learned_embeds_2",
    lambda b: {"<sks>": numbers(1, b.token_widths[TE2])},
    "learned-embeds",
    0,
    "embedding.one_encoder",
    kind="embedding",
    components=(TE2,),
    embeddings=1,
    serves="sdxl",
)
_good(
    "bundle of kohya and two tokens",
    lambda b: kohya(b, layers(b)) | clip_pair(b, "bundle_emb.a.") | clip_pair(b, "bundle_emb.b."),
    "kohya-sgm+bundle-emb",
    6,
    kind="bundle",
    embeddings=4,
    components=("unet", TE1, TE2),
)
_good(
    "bundle of peft and clip_l, clip_g",
    lambda b: peft(layers(b)) | clip_pair(b),
    "diffusers-peft+clip-l-g",
    6,
    kind="bundle",
    embeddings=2,
    components=("unet", TE1, TE2),
)
_good(
    "all zero",
    lambda b: {k: v * 0 for k, v in peft(layers(b)).items()},
    "diffusers-peft",
    6,
    "values.no_effect",
)
_good(
    "large numbers",
    lambda b: {k: v * np.float16(60) for k, v in peft(layers(b)).items()},
    "diffusers-peft",
    6,
    "values.large",
)
_good(
    "metadata of another model",
    lambda b: peft(layers(b)),
    "diffusers-peft",
    6,
    "metadata.base_model",
    metadata={"ss_base_model_version": "sd_v1"},
)
_good(
    "metadata with the hash of nothing",
    lambda b: peft(layers(b)),
    "diffusers-peft",
    6,
    "metadata.hash",
    metadata={"sshs_model_hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
)
_good(
    "v-prediction",
    lambda b: peft(layers(b)),
    "diffusers-peft",
    6,
    "metadata.prediction_type",
    metadata={"modelspec.prediction_type": "v"},
)
_good(
    "zero-sized metadata and a tail of spaces in the header",
    lambda b: with_spaces(safetensors(peft(layers(b)))),
    "diffusers-peft",
    6,
)

# Made for something else.

_bad("sd1 kohya", lambda b: kohya(sd1(), layers(sd1()), naming="diffusers"), "family.sd1")
_bad(
    "sd1 kohya to sdxl",
    lambda b: kohya(sd1(), layers(sd1(), count=3), naming="diffusers"),
    "family.sd1",
    serves="sdxl",
)
_bad("sd1 peft", lambda b: peft(layers(sd1())), "family.sd1")
_bad(
    "sd1 text encoder alone",
    lambda b: {
        k.replace("lora_te1_", "lora_te_"): v for k, v in kohya(sd1(), layers(sd1(), TEXT, TE1), TE1).items()
    },
    "family.sd1",
    serves="sdxl",
)
_bad(
    "sd1 without cross-attention",
    lambda b: peft(layers(sd1(), "down_blocks.3.resnets")),
    "family.sd1",
    serves="sdxl",
)
_bad("sd1 embedding", lambda b: {"emb_params": numbers(4, 768)}, "family.sd1")
_bad("sd2 kohya", lambda b: kohya(sd2(), layers(sd2()), naming="diffusers"), "family.sd2")
_bad("sd2 embedding", lambda b: {"emb_params": numbers(4, 1024)}, "family.sd2", serves="sdxl")
_bad(
    "refiner kohya",
    lambda b: kohya(sdxl_refiner(), layers(sdxl_refiner())),
    "family.sdxl_refiner",
    serves="sdxl",
)
_bad(
    "refiner loha",
    lambda b: loha(sdxl_refiner(), layers(sdxl_refiner(), "attn2.to_k")),
    "family.sdxl_refiner",
    serves="sdxl",
)
_bad("sdxl to a pocket service", lambda b: kohya(sdxl(), layers(sdxl())), "family.sdxl")
_bad(
    "sdxl without cross-attention to a pocket service",
    lambda b: peft(layers(sdxl(), "attn1.to_q")),
    "family.sdxl",
)
_bad("sdxl lokr to a pocket service", lambda b: lokr(sdxl(), layers(sdxl())), "family.sdxl")
_bad("sdxl embedding to a pocket service", lambda b: clip_pair(sdxl()), "family.sdxl")
_bad(
    "pocket to an sdxl service", lambda b: kohya(pocket(), layers(pocket())), "family.unknown", serves="sdxl"
)
_bad("pocket embedding to an sdxl service", lambda b: clip_pair(pocket()), "shape.mismatch", serves="sdxl")
_bad(
    "flux kohya",
    lambda b: {
        f"lora_unet_double_blocks_0_img_attn_qkv.lora_{half}.weight": numbers(4, 4) for half in ("down", "up")
    },
    "family.flux",
)
_bad(
    "flux diffusers",
    lambda b: {
        f"transformer.single_transformer_blocks.0.attn.to_q.lora_{half}.weight": numbers(4, 4)
        for half in "AB"
    },
    "family.flux",
)
_bad(
    "flux double blocks alone",
    lambda b: {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": numbers(4, 3072),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": numbers(3072, 4),
    },
    "family.flux",
)
_bad(
    "sd3 diffusers",
    lambda b: {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": numbers(4, 1536),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": numbers(1536, 4),
    },
    "family.sd3",
)
_bad(
    "sd3 kohya",
    lambda b: {
        f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{half}.weight": numbers(4, 4)
        for half in ("down", "up")
    },
    "family.sd3",
    serves="sdxl",
)
_bad(
    "sdxl and sd1 in one file",
    lambda b: (
        peft(layers(sdxl(), "attn2.to_k", count=2))
        | peft(layers(sd1(), "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"))
    ),
    "family.mixed",
    serves="sdxl",
)
_bad(
    "oft",
    lambda b: kohya(b, layers(b)) | {"lora_unet_input_blocks_2_1_proj_in.oft_blocks": numbers(4, 8, 8)},
    "format.oft",
)
_bad(
    "oft of peft", lambda b: {"unet.mid_block.attentions.0.proj_in.oft_R.weight": numbers(4, 8)}, "format.oft"
)
_bad("glora", lambda b: {"lora_unet_middle_block_1_proj_in.a1.weight": numbers(4, 96)}, "format.glora")
_bad(
    "ia3",
    lambda b: {
        "lora_unet_middle_block_1_proj_in.weight": numbers(96),
        "lora_unet_middle_block_1_proj_in.on_input": np.zeros(1, "<f2"),
    },
    "format.ia3",
)
_bad(
    "full difference",
    lambda b: {"lora_unet_middle_block_1_proj_in.diff": numbers(96, 96)},
    "format.full_difference",
)
_bad("norm layers", lambda b: kohya(b, layers(b)) | {"lora_unet_out_0.w_norm": numbers(32)}, "format.norm")
_bad(
    "full unet",
    lambda b: {f"{name}.weight": np.zeros(layer.shape, "<f2") for name, layer in b.layers["unet"].items()},
    "format.checkpoint",
)
_bad(
    "full checkpoint",
    lambda b: {"model.diffusion_model.input_blocks.0.0.weight": numbers(32, 4, 3, 3)},
    "format.checkpoint",
)

# Right in kind, spoilt in detail.


def _dropped(tensors: Tensors, suffix: str) -> Tensors:
    key = next(key for key in tensors if key.endswith(suffix))
    return {name: tensor for name, tensor in tensors.items() if name != key}


def _changed(tensors: Tensors, suffix: str, change: Callable[[np.ndarray], np.ndarray | Raw]) -> Tensors:
    key = next(key for key in tensors if key.endswith(suffix))
    return {name: change(tensor) if name == key else tensor for name, tensor in tensors.items()}  # type: ignore[arg-type]


def _spoilt(tensor: np.ndarray, value: float) -> np.ndarray:
    out = tensor.copy()
    out.flat[-1] = value
    return out


def with_spaces(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return with_header(data[8 : 8 + length] + b" " * 24, data[8 + length :])


_bad("down without up", lambda b: _dropped(peft(layers(b)), "lora_B.weight"), "pair.half")
_bad("up without down", lambda b: _dropped(kohya(b, layers(b)), "lora_down.weight"), "pair.half")
_bad(
    "alpha alone",
    lambda b: kohya(b, layers(b)) | {"lora_unet_middle_block_1_proj_in.alpha": np.array(1, "<f2")},
    "pair.half",
)
_bad("loha without one of four", lambda b: _dropped(loha(b, layers(b)), "hada_w2_b"), "pair.half")
_bad("loha with one core", lambda b: _dropped(loha(b, layers(b, CONV), tucker=True), "hada_t2"), "pair.half")
_bad("lokr without its first factor", lambda b: _dropped(lokr(b, layers(b)), "lokr_w1"), "pair.half")
_bad("clip_l without clip_g", lambda b: _dropped(clip_pair(b), "clip_g"), "pair.half")
_bad(
    "bundle without one encoder",
    lambda b: kohya(b, layers(b)) | _dropped(clip_pair(b, "bundle_emb.x."), "clip_l"),
    "pair.half",
)
_bad(
    "embedding of two lengths",
    lambda b: clip_pair(b) | {"clip_l": numbers(3, b.token_widths[TE1])},
    "embedding.lengths",
)
_bad("embedding longer than a prompt", lambda b: clip_pair(b, vectors=76), "embedding.too_long")
_bad("embeddings in two forms", lambda b: clip_pair(b) | clip_pair(b, "bundle_emb.x."), "format.mixed")
_bad(
    "transposed",
    lambda b: {k: np.ascontiguousarray(v.T) for k, v in peft(layers(b, FF)).items()},
    "shape.transposed",
)
_bad(
    "one pair transposed",
    lambda b: _changed(
        _changed(peft(layers(b, FF)), "lora_A.weight", np.transpose), "lora_B.weight", np.transpose
    ),
    "shape.transposed",
)
_bad(
    "up and down swapped",
    lambda b: {
        k.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B"): v
        for k, v in peft(layers(b, FF)).items()
    },
    "shape.mismatch",
)
_bad(
    "two ranks in one pair",
    lambda b: _changed(peft(layers(b)), "lora_B.weight", lambda t: t[:, :3].copy()),
    "shape.mismatch",
)
_bad(
    "one layer too narrow",
    lambda b: _changed(peft(layers(b, "attn1")), "lora_A.weight", lambda t: t[:, 1:].copy()),
    "shape.mismatch",
)
_bad(
    "a vector for a matrix",
    lambda b: _changed(peft(layers(b)), "lora_A.weight", lambda t: t[0].copy()),
    "shape.mismatch",
)
_bad(
    "lokr that does not multiply",
    lambda b: _changed(lokr(b, layers(b)), "lokr_w1", lambda t: t[:3].copy()),
    "shape.mismatch",
)
_bad(
    "loha of two ranks",
    lambda b: _changed(
        _changed(loha(b, layers(b)), "hada_w1_a", lambda t: t[:, :2].copy()),
        "hada_w1_b",
        lambda t: t[:2].copy(),
    ),
    "shape.mismatch",
)
_bad(
    "dora scale too short",
    lambda b: _changed(with_dora_scale(kohya(b, layers(b))), "dora_scale", lambda t: t[:-1].copy()),
    "shape.mismatch",
)
_bad(
    "lora_mid on a linear layer",
    lambda b: (
        kohya(b, layers(b, "proj_in", count=1))
        | {"lora_unet_input_blocks_3_1_proj_in.lora_mid.weight": numbers(4, 4, 3, 3)}
    ),
    "shape.mismatch",
)
_bad("two algorithms on one layer", lambda b: kohya(b, layers(b)) | loha(b, layers(b)), "module.mixed")
_bad("rank 513", lambda b: peft(layers(b, count=1), rank=513), "rank.too_large")
_bad(
    "a layer that does not exist",
    lambda b: (
        peft(layers(b))
        | peft({"down_blocks.9.attentions.0.proj_in": b.layers["unet"]["mid_block.attentions.0.proj_in"]})
    ),
    "keys.unknown_layer",
)
_bad("an unknown tensor", lambda b: peft(layers(b)) | {"surprise": numbers(3)}, "keys.unknown")
_bad(
    "a bias",
    lambda b: peft(layers(b)) | {"unet.mid_block.attentions.0.proj_in.lora_B.bias": numbers(96)},
    "keys.unknown",
)
_bad("only unknown tensors", lambda b: {"weights.layer.kernel": numbers(3, 3)}, "keys.unknown")
_bad("kohya and diffusers names", lambda b: peft(layers(b)) | kohya(b, layers(b, FF)), "format.mixed")
_bad(
    "sgm and diffusers names",
    lambda b: kohya(b, layers(b)) | kohya(b, layers(b, FF), naming="diffusers"),
    "format.mixed",
)
_bad(
    "one layer under two names",
    lambda b: peft(layers(b, count=1)) | peft(layers(b, count=1), ""),
    "format.mixed",
    "module.duplicate",
)
_bad("peft and legacy roles", lambda b: peft(layers(b, "attn1")) | legacy(layers(b, "attn2")), "format.mixed")
_bad(
    "NaN",
    lambda b: _changed(peft(layers(b)), "lora_B.weight", lambda t: _spoilt(t, np.nan)),
    "values.not_finite",
)
_bad(
    "infinity in bfloat16",
    lambda b: _changed(peft(layers(b)), "lora_A.weight", lambda t: bfloat16(_spoilt(t, np.inf))),
    "values.not_finite",
)
_bad(
    "NaN in an embedding",
    lambda b: _changed(clip_pair(b), "clip_l", lambda t: _spoilt(t, np.nan)),
    "values.not_finite",
)
_bad("NaN alpha", lambda b: kohya(b, layers(b), alphas=[np.nan]), "values.not_finite")
_bad("alpha of zero", lambda b: kohya(b, layers(b), alphas=[0.0, 1.0]), "alpha.invalid")
_bad("negative alpha", lambda b: kohya(b, layers(b), alphas=[-1.0]), "alpha.invalid")
_bad(
    "alpha with two numbers",
    lambda b: _changed(kohya(b, layers(b)), "alpha", lambda t: np.ones(2, "<f2")),
    "alpha.invalid",
)
_bad(
    "huge numbers",
    lambda b: {k: v * np.float32(1e20) for k, v in peft(layers(b), dtype="<f4").items()},
    "values.huge",
)
_bad(
    "numbers whose squares overflow",
    lambda b: {k: v * np.float32(1e38) for k, v in peft(layers(b), dtype="<f4").items()},
    "values.huge",
)
_bad("float64", lambda b: peft(layers(b), dtype="<f8"), "dtype.unsupported")
_bad(
    "float8",
    lambda b: {k: Raw("F8_E4M3", v.shape, bytes(v.size)) for k, v in peft(layers(b)).items()},
    "dtype.unsupported",
)
_bad(
    "adapter configuration of another rank",
    lambda b: peft(layers(b)),
    "metadata.adapter_config",
    metadata={"lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.lora_alpha": 8})},
)
_bad(
    "adapter configuration that is no JSON",
    lambda b: peft(layers(b)),
    "metadata.adapter_config",
    metadata={"lora_adapter_metadata": "{"},
)
_bad(
    "adapter configuration with a regular expression",
    lambda b: peft(layers(b)),
    "metadata.adapter_config",
    metadata={"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"(a+)+$": 2}})},
)
_bad(
    "dora configured and not there",
    lambda b: peft(layers(b)),
    "metadata.adapter_config",
    metadata={"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.use_dora": True})},
)

# No safetensors file, or one that lies.


def _file(change: Callable[[bytes], bytes]) -> Callable[[BaseModel], bytes]:
    return lambda b: change(safetensors(peft(layers(b))))


def _entry(**entry: object) -> Callable[[BaseModel], bytes]:
    return lambda b: safetensors(peft(layers(b, count=1)), None, **{"unet.x": entry})


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return buffer.getvalue()


def _duplicate(b: BaseModel) -> bytes:
    entry = '"unet.x.lora_A.weight":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}'
    return with_header(f"{{{entry},{entry}}}".encode(), bytes(2))


_bad("empty file", lambda b: b"", "file.empty")
_bad("pickle", lambda b: pickle.dumps({"unet": [1.0] * 40}, protocol=4), "file.pickle")
_bad("old torch file", lambda b: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "file.pickle")
_bad("zip of torch", lambda b: _zip(), "file.pickle")
_bad("web page", lambda b: b"<!DOCTYPE html><html><title>Log in</title></html>", "file.foreign")
_bad("picture", lambda b: b"\x89PNG\r\n\x1a\n" + bytes(64), "file.foreign")
_bad("gguf", lambda b: b"GGUF\x03\0\0\0" + bytes(64), "file.foreign")
_bad(
    "git lfs pointer", lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "file.foreign"
)
_bad("noise", lambda b: bytes(range(7, 200)), "file.foreign")
_bad("seven bytes", lambda b: bytes(7), "file.truncated")
_bad("cut in the header", _file(lambda data: data[:100]), "file.truncated")
_bad("cut in a tensor", _file(lambda data: data[:-1]), "file.truncated")
_bad("bytes after the end", _file(lambda data: data + b"\0"), "header.trailing")
_bad("header of 9 MiB", lambda b: struct.pack("<Q", 9 * 2**20) + b"{" + b" " * 100, "header.too_large")
_bad("header of 2^63 bytes", lambda b: struct.pack("<Q", 2**63) + b"{" + b" " * 100, "header.too_large")
_bad("header that is no JSON", lambda b: with_header(b"{oops}", b""), "header.not_json")
_bad(
    "header nested too deeply",
    lambda b: with_header(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""),
    "header.not_json",
)
_bad("header that is not UTF-8", lambda b: with_header(b'{"\xff":1}', b""), "header.not_json")
_bad("no tensor", lambda b: safetensors({}, {"format": "pt"}), "file.no_tensors")
_bad(
    "20 001 tensors",
    lambda b: with_header(
        json.dumps(
            {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_001)}
        ).encode(),
        bytes(20_001),
    ),
    "header.too_many_tensors",
)
_bad("one name twice", _duplicate, "header.duplicate_key")
_bad("overlapping tensors", _entry(dtype="F16", shape=[4], data_offsets=[0, 8]), "header.overlap")
_bad("hole between tensors", _entry(dtype="F16", shape=[1], data_offsets=[10**6, 10**6 + 2]), "header.hole")
_bad("shape that does not fill its bytes", _entry(dtype="F16", shape=[3], data_offsets=[0, 8]), "header.size")
_bad("shape that overflows", _entry(dtype="F16", shape=[2**40, 2**40], data_offsets=[0, 0]), "header.size")
_bad("negative shape", _entry(dtype="F16", shape=[-1], data_offsets=[0, 2]), "header.shape")
_bad("nothing in a tensor", _entry(dtype="F16", shape=[0, 4], data_offsets=[0, 0]), "header.shape")
_bad("backward offsets", _entry(dtype="F16", shape=[1], data_offsets=[4, 2]), "header.offsets")
_bad("unknown dtype", _entry(dtype="F12", shape=[1], data_offsets=[0, 2]), "header.dtype")
_bad("entry without offsets", _entry(dtype="F16", shape=[1]), "header.entry")
_bad(
    "metadata with a number",
    lambda b: safetensors(peft(layers(b)), None, __metadata__={"a": 1}),
    "header.metadata",
)
_bad(
    "tensor name with an escape sequence",
    lambda b: safetensors(peft(layers(b)) | {"\x1b[2J": numbers(1)}),
    "header.name",
)
_bad(
    "token that is a path", lambda b: peft(layers(b)) | clip_pair(b, "bundle_emb./home/jane."), "keys.unknown"
)
_bad("tensor name of 600 characters", lambda b: safetensors({"x" * 600: numbers(1)}), "header.name")
