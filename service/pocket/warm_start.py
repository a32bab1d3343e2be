"""Start a network from an earlier checkpoint: what matches is copied, what has grown begins as a no-op."""

import json
import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@torch.no_grad()
def warm_start_text_encoder(
    encoder: CLIPTextModel | CLIPTextModelWithProjection,
    folder: Path,
    tokenizer: CLIPTokenizer,
    old_vocab: Path,
) -> None:
    """Copy the text encoder in `folder`; token rows move by their string, new layers start as identities.

    Added layers go before the last, whose input is the penultimate state that the UNet sees.
    """
    old = _weights(folder)
    old_ids = json.loads(old_vocab.read_text())
    old_layers = 1 + max(int(m[1]) for m in (re.search(r"layers\.(\d+)\.", key) for key in old) if m)
    new_layers = encoder.config.num_hidden_layers
    for key, tensor in encoder.state_dict().items():
        layer = re.search(r"layers\.(\d+)\.", key)
        index = int(layer[1]) if layer else 0
        source = key
        if layer and index == new_layers - 1:
            source = key.replace(layer[0], f"layers.{old_layers - 1}.")
        if key.endswith("token_embedding.weight"):
            for token, row in tokenizer.get_vocab().items():
                if token in old_ids:
                    tensor[row] = old[key][old_ids[token]]
        elif layer and old_layers - 1 <= index < new_layers - 1:
            if ".out_proj." in key or ".fc2." in key:
                tensor.zero_()
        else:
            tensor.copy_(old[source])


@torch.no_grad()
def warm_start_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Copy the UNet in `folder`; added transformer layers start as identities."""
    old = _weights(folder)
    for key, tensor in unet.state_dict().items():
        if key in old:
            tensor.copy_(old[key])
        elif re.search(r"transformer_blocks\.\d+\.(attn[12]\.to_out\.0|ff\.net\.2)\.", key):
            tensor.zero_()


@torch.no_grad()
def refiner_from_base(refiner: UNet2DConditionModel, base: UNet2DConditionModel) -> None:
    """Copy the base UNet into the refiner's, which has encoder 2's half of the context and one id less."""
    own = refiner.state_dict()
    for key, tensor in base.state_dict().items():
        if own[key].shape == tensor.shape:
            own[key].copy_(tensor)
        elif "attn2.to_k" in key or "attn2.to_v" in key:
            own[key].copy_(tensor[:, -own[key].shape[1] :])
        else:
            own[key].copy_(tensor[:, : own[key].shape[1]])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return {key: tensor.float() for key, tensor in load_file(path).items()}
