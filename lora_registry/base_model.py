"""The layers that a LoRA may touch, with their shapes, from a model's config files alone: no torch, no weights.

The layer names are those of diffusers' UNet2DConditionModel and transformers' CLIPTextModel; the tests compare them
with the pocket model's own weight files, and SDXL's with counts taken from the real class.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_registry.records import Component
from lora_registry.sgm import sgm_names

TEXT_ENCODERS: tuple[Component, ...] = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Layer:
    """A linear layer (`kernel` 0) or a square convolution."""

    outputs: int
    inputs: int
    kernel: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weight."""
        return (
            (self.outputs, self.inputs, *(self.kernel,) * 2) if self.kernel else (self.outputs, self.inputs)
        )


@dataclass(frozen=True)
class BaseModel:
    """A model that LoRAs are made for. `name` is for people: "SDXL 1.0".

    `layers` maps each component to its layers by name; `sgm` maps the UNet's layer names to those of the original
    code (`input_blocks.4.1.…`), which kohya's files use. `token_widths` are the text encoders' embedding widths.
    """

    name: str
    layers: Mapping[Component, Mapping[str, Layer]]
    sgm: Mapping[str, str]
    cross_attention_width: int
    token_widths: Mapping[Component, int]

    @classmethod
    def from_configs(
        cls, name: str, unet: Mapping[str, Any], encoders: Mapping[Component, Mapping[str, Any]]
    ) -> "BaseModel":
        """The model of these configs, as diffusers and transformers write them.

        Raises:
            ValueError: the UNet has blocks other than those of Stable Diffusion.
        """
        layers: dict[Component, Mapping[str, Layer]] = {"unet": dict(_unet(unet))}
        for component, config in encoders.items():
            layers[component] = dict(_text_encoder(config))
        return cls(
            name,
            layers,
            sgm_names(layers["unet"], int(unet["layers_per_block"])),
            int(unet["cross_attention_dim"]),
            {component: int(config["hidden_size"]) for component, config in encoders.items()},
        )

    @classmethod
    def from_folder(cls, name: str, folder: Path) -> "BaseModel":
        """The model in a diffusers folder, by its `*/config.json`.

        Raises:
            OSError, ValueError: they cannot be read.
        """

        def config(part: str) -> dict[str, Any]:
            found: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            return found

        encoders = {part: config(part) for part in TEXT_ENCODERS if (folder / part / "config.json").is_file()}
        return cls.from_configs(name, config("unet"), encoders)

    @cached_property
    def kohya_unet(self) -> Mapping[str, tuple[str, str]]:
        """Flattened layer name -> (layer name, which naming it is: `sgm` or `diffusers`)."""
        found = {layer.replace(".", "_"): (layer, "diffusers") for layer in self.layers["unet"]}
        found.update({sgm.replace(".", "_"): (layer, "sgm") for layer, sgm in self.sgm.items()})
        return found

    @cached_property
    def kohya_encoders(self) -> Mapping[Component, Mapping[str, str]]:
        """By component: flattened layer name, with `text_model_` and without -> layer name."""
        return {
            component: {
                spelling.replace(".", "_"): layer
                for layer in layers
                for spelling in (layer, layer.removeprefix("text_model."))
            }
            for component, layers in self.layers.items()
            if component != "unet"
        }

    @cached_property
    def from_sgm(self) -> Mapping[str, str]:
        return {sgm: layer for layer, sgm in self.sgm.items()}


def _unet(config: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    """Layer by layer in the order of the forward pass. Source: diffusers, unet_2d_condition.py."""
    widths = [int(width) for width in config["block_out_channels"]]
    depths = _per_block(config.get("transformer_layers_per_block") or 1, len(widths))
    count, cross, time = int(config["layers_per_block"]), int(config["cross_attention_dim"]), widths[0] * 4
    linear = bool(config.get("use_linear_projection"))

    def attention(name: str, width: int, depth: int) -> Iterator[tuple[str, Layer]]:
        return _transformer(name, width, cross, depth, linear)

    yield "conv_in", Layer(widths[0], int(config["in_channels"]), 3)
    yield "time_embedding.linear_1", Layer(time, widths[0])
    yield "time_embedding.linear_2", Layer(time, time)
    if config.get("addition_embed_type") == "text_time":
        yield "add_embedding.linear_1", Layer(time, int(config["projection_class_embeddings_input_dim"]))
        yield "add_embedding.linear_2", Layer(time, time)

    skips = [widths[0]]
    before = widths[0]
    for i, (kind, width) in enumerate(zip(config["down_block_types"], widths, strict=True)):
        has_attention = _has_attention(kind)
        for j in range(count):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", before if j == 0 else width, width, time)
            if has_attention:
                yield from attention(f"down_blocks.{i}.attentions.{j}", width, depths[i])
            skips.append(width)
        if i < len(widths) - 1:
            yield f"down_blocks.{i}.downsamplers.0.conv", Layer(width, width, 3)
            skips.append(width)
        before = width

    yield from _resnet("mid_block.resnets.0", before, before, time)
    yield from attention("mid_block.attentions.0", before, depths[-1])
    yield from _resnet("mid_block.resnets.1", before, before, time)

    for i, (kind, width) in enumerate(zip(config["up_block_types"], reversed(widths), strict=True)):
        has_attention = _has_attention(kind)
        for j in range(count + 1):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", before + skips.pop(), width, time)
            before = width
            if has_attention:
                yield from attention(f"up_blocks.{i}.attentions.{j}", width, depths[-1 - i])
        if i < len(widths) - 1:
            yield f"up_blocks.{i}.upsamplers.0.conv", Layer(width, width, 3)
    yield "conv_out", Layer(int(config["out_channels"]), widths[0], 3)


def _resnet(name: str, inputs: int, outputs: int, time: int) -> Iterator[tuple[str, Layer]]:
    yield f"{name}.conv1", Layer(outputs, inputs, 3)
    yield f"{name}.time_emb_proj", Layer(outputs, time)
    yield f"{name}.conv2", Layer(outputs, outputs, 3)
    if inputs != outputs:
        yield f"{name}.conv_shortcut", Layer(outputs, inputs, 1)


def _transformer(name: str, width: int, cross: int, depth: int, linear: bool) -> Iterator[tuple[str, Layer]]:
    projection = Layer(width, width) if linear else Layer(width, width, 1)
    yield f"{name}.proj_in", projection
    for block in range(depth):
        inner = f"{name}.transformer_blocks.{block}"
        for attention, context in (("attn1", width), ("attn2", cross)):
            yield f"{inner}.{attention}.to_q", Layer(width, width)
            yield f"{inner}.{attention}.to_k", Layer(width, context)
            yield f"{inner}.{attention}.to_v", Layer(width, context)
            yield f"{inner}.{attention}.to_out.0", Layer(width, width)
        yield (
            f"{inner}.ff.net.0.proj",
            Layer(width * 8, width),
        )  # GEGLU: a value and a gate, each four times as wide
        yield f"{inner}.ff.net.2", Layer(width, width * 4)
    yield f"{name}.proj_out", projection


def _text_encoder(config: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    for i in range(int(config["num_hidden_layers"])):
        name = f"text_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{name}.self_attn.{projection}", Layer(width, width)
        yield f"{name}.mlp.fc1", Layer(inner, width)
        yield f"{name}.mlp.fc2", Layer(width, inner)
    if "CLIPTextModelWithProjection" in config.get("architectures", ()):
        yield "text_projection", Layer(int(config["projection_dim"]), width)


def _has_attention(kind: str) -> bool:
    if kind not in ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"):
        raise ValueError(f"a UNet with a {kind} is not one that LoRAs are mapped to")
    return kind.startswith("CrossAttn")


def _per_block(value: int | list[int], blocks: int) -> list[int]:
    return [value] * blocks if isinstance(value, int) else value
