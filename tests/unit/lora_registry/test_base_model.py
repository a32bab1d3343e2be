"""The layers that configs promise are the layers that the models have."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from lora_registry.base_model import BaseModel
from lora_registry.families import sd1, sd2, sdxl, sdxl_refiner
from lora_registry.header import read_header
from unit.lora_registry.makers import POCKET_FOLDER, pocket


def weights_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all matrices and kernels in a weight file, by layer."""
    with path.open("rb") as file:
        tensors = read_header(file, path.stat().st_size).tensors
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) > 1 and "embeddings." not in name
    }


def test_the_pocket_models_layers_are_those_of_its_weight_files():
    base = pocket()
    files = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}
    for component, file in files.items():
        real = weights_of(POCKET_FOLDER / component / f"{file}.fp16.safetensors")
        if component != "unet":
            real = {
                name if name.startswith("text_") else f"text_model.{name}": shape
                for name, shape in real.items()
            }
        assert {name: layer.shape for name, layer in base.layers[component].items()} == real


@pytest.mark.parametrize(
    ("base", "digest"),
    [
        (sdxl, "82e3cae7df3753b4d2ca4d1b17079ac0c5f9a6cd6498a79dea66251fdd5e9630"),
        (sdxl_refiner, "726089de7b14cc6b0bd76c55e271c603a01844085da0a0f6a952dd4e852020f6"),
        (sd1, "497a3bd59a15f1a4b3dd3c50ff1c56ab327fccb3dd698abbfa73300ef3489290"),
        (sd2, "a4802e9085c43a67412df2018d92d364625a3e968755f525f9d4c6f3a0d9e540"),
    ],
)
def test_the_known_unets_are_those_of_diffusers(base, digest):
    # Taken from diffusers 0.42.1: names and weight shapes of all linear and convolution layers of UNet2DConditionModel.
    lines = sorted(f"{name} {layer.shape}" for name, layer in base().layers["unet"].items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_sdxls_attention_weights_have_the_four_known_shapes():
    layers = sdxl().layers["unet"]
    shapes = Counter(layer.shape for name, layer in layers.items() if ".attn" in name)
    assert shapes == {(1280, 1280): 360, (1280, 2048): 120, (640, 640): 60, (640, 2048): 20}


@pytest.mark.parametrize(
    ("layer", "sgm"),
    [
        ("conv_in", "input_blocks.0.0"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        ),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        (
            "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj",
            "output_blocks.2.1.transformer_blocks.9.ff.net.0.proj",
        ),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.2.resnets.2.time_emb_proj", "output_blocks.8.0.emb_layers.1"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_out", "out.2"),
    ],
)
def test_sdxls_layers_have_their_original_names(layer, sgm):
    assert sdxl().sgm[layer] == sgm


@pytest.mark.parametrize("base", [pocket, sdxl, sdxl_refiner, sd1, sd2])
def test_no_two_layers_share_an_original_or_a_flattened_name(base):
    names = base().sgm
    assert len(set(names.values())) == len(names) == len(base().layers["unet"])
    for spelling in (names.keys(), names.values()):
        assert len({name.replace(".", "_") for name in spelling}) == len(names)
    flattened = {name.replace(".", "_"): name for name in names}
    for layer, sgm in names.items():  # a name means one layer, whichever way it is spelt
        assert flattened.get(sgm.replace(".", "_"), layer) == layer


def test_a_unet_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="KDownBlock2D"):
        BaseModel.from_configs(
            "x",
            {
                "block_out_channels": [8],
                "down_block_types": ["KDownBlock2D"],
                "up_block_types": ["UpBlock2D"],
                "layers_per_block": 1,
                "cross_attention_dim": 8,
                "in_channels": 4,
                "out_channels": 4,
            },
            {},
        )
