"""Layer names of the original Stable Diffusion code (`input_blocks.4.1.…`), by rule from diffusers' names.

kohya's SDXL trainer names its tensors after the original code, with the dots made underscores. The original counts
its blocks in one row: an input layer, then per level its residual blocks and a downsampler.
Source: Stability-AI/generative-models, openaimodel.py.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

_FIXED: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_IN_RESNET: Final = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_NAME: Final = re.compile(
    r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def sgm_names(layers: Iterable[str], layers_per_block: int) -> Mapping[str, str]:
    """Original name of every UNet layer, by its diffusers name."""
    names = list(layers)
    with_attention = {
        match[1] for name in names if (match := re.match(r"(up_blocks\.\d+)\.attentions\.", name))
    }
    return {name: _FIXED.get(name) or _sgm_name(name, layers_per_block, with_attention) for name in names}


def _sgm_name(name: str, layers_per_block: int, with_attention: set[str]) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"no rule for the layer '{name}'")
    side, block, part, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = _IN_RESNET[rest] if part == "resnets" else rest
    if side == "mid":
        return f"middle_block.{1 if part == 'attentions' else index * 2}.{inner}"
    column = 1 if part == "attentions" else 0
    first = block * (layers_per_block + 1)
    if part == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if part == "upsamplers":
        column = 2 if f"up_blocks.{block}" in with_attention else 1
        return f"output_blocks.{first + layers_per_block}.{column}.conv"
    row = first + index + (1 if side == "down" else 0)
    return f"{side_name(side)}.{row}.{column}.{inner}"


def side_name(side: str) -> str:
    """`input_blocks` for the way down, `output_blocks` for the way up."""
    return "input_blocks" if side == "down" else "output_blocks"
