"""An exported file does what the published one did, under the names that other programs read."""

from io import BytesIO

import numpy as np
import pytest
import safetensors.numpy

from lora_registry import errors
from lora_registry.header import read_header
from lora_registry.inspection import inspect
from lora_registry.values import as_float32
from unit.lora_registry.makers import (
    bfloat16,
    clip_pair,
    kohya,
    layers,
    locon_mid,
    loha,
    lokr,
    numbers,
    peft,
    peft_dora,
    pocket,
    with_dora_scale,
)
from unit.lora_registry.makers import (
    safetensors as file_of,
)

TE1, TE2 = "text_encoder", "text_encoder_2"


def effects(data: bytes) -> dict[str, np.ndarray]:
    """Scale · up · down of each plain module, flattened, and every other tensor as it is."""
    found = inspect(BytesIO(data), len(data), [pocket()])
    assert found.accepted, found.reasons
    header = read_header(BytesIO(data), len(data))

    def tensor(key: str) -> np.ndarray:
        entry = header.tensors[key]
        return as_float32(data[entry.start : entry.end], entry.dtype).reshape(entry.shape)

    out = {}
    for module in found.modules:
        where = f"{module.component}.{module.name}"
        up, down = (tensor(module.tensors[role]) for role in ("up", "down"))
        out[where] = module.scale * up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
        for role in ("magnitude", "dora_scale"):
            if role in module.tensors:
                out[f"{where} dora"] = tensor(module.tensors[role]).ravel()
    return out


def exported(registry, data: bytes, form: str) -> bytes:
    registry.publish("ink-wash", [data], triggers=["tusche"])
    export = registry.export("ink-wash", form)
    result = b"".join(export.pieces)
    assert len(result) == export.size_bytes
    return result


def everything(base) -> dict:
    return (
        kohya(base, layers(base) | layers(base, "resnets.0.conv1"), ranks=[1, 2, 8], alphas=[1.0, 3.0, None])
        | kohya(base, layers(base, "encoder.layers", TE1), TE1)
        | kohya(base, layers(base, "encoder.layers", TE2), TE2)
    )


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["kohya", "float32", "bfloat16", "peft", "peft dora", "kohya dora", "1x1"])
def test_an_exported_file_has_the_same_effect(local, form, kind):
    base = pocket()
    tensors = {
        "kohya": lambda: everything(base),
        "float32": lambda: {k: v.astype("<f4") for k, v in everything(base).items()},
        "bfloat16": lambda: {
            k: v if k.endswith("alpha") else bfloat16(v) for k, v in everything(base).items()
        },
        "peft": lambda: peft(layers(base)) | peft(layers(base, "encoder.layers", TE1), "text_encoder."),
        "peft dora": lambda: peft_dora(layers(base) | layers(base, "resnets.0.conv1")),
        "kohya dora": lambda: with_dora_scale(kohya(base, layers(base) | layers(base, "resnets.0.conv1"))),
        "1x1": lambda: {
            k: v.reshape(*v.shape, 1, 1) if v.ndim == 2 else v
            for k, v in kohya(base, layers(base, "proj_in")).items()
        },
    }[kind]()
    data = file_of(tensors)
    before, after = effects(data), effects(exported(local, data, form))
    assert before.keys() == after.keys()
    for where, effect in before.items():
        tolerance = {"float32": 1e-6, "bfloat16": 2**-7}.get(kind, 2**-10)  # one rounding of lora_B
        assert np.abs(after[where] - effect).max() <= tolerance * np.abs(effect).max(), where


def test_kohya_names_are_those_that_a1111_and_comfyui_read(local):
    base = pocket()
    data = file_of(peft(layers(base, count=1)) | peft(layers(base, "q_proj", TE1, count=1), "text_encoder."))
    tensors = safetensors.numpy.load(exported(local, data, "kohya"))
    assert {name.partition(".")[0] for name in tensors} == {
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    }
    assert all(float(tensors[name]) == 4.0 for name in tensors if name.endswith(".alpha"))


def test_an_export_carries_the_metadata_that_other_programs_show(local):
    data = file_of(kohya(pocket(), layers(pocket())), {"ss_output_name": "private", "ss_steps": "100"})
    header = read_header(BytesIO(result := exported(local, data, "kohya")), len(result))
    assert header.metadata["modelspec.trigger_phrase"] == "tusche"
    assert (header.metadata["ss_network_dim"], header.metadata["ss_network_alpha"]) == ("4", "2")
    assert header.metadata["ss_steps"] == "100"
    assert "private" not in str(header.metadata)


@pytest.mark.parametrize("make", [loha, lokr, locon_mid])
def test_what_diffusers_has_no_form_for_goes_out_under_kohya_names_only(local, make):
    base = pocket()
    data = file_of(make(base, layers(base, "resnets.0.conv1")))
    result = exported(local, data, "kohya")
    assert inspect(BytesIO(result), len(result), [base]).accepted
    with pytest.raises(errors.NotExportable, match="export kohya names"):
        local.export("ink-wash", "diffusers")


def test_a_dora_by_inputs_does_not_become_one_by_outputs(local):
    local.publish("ink-wash", [file_of(with_dora_scale(kohya(pocket(), layers(pocket())), by_inputs=True))])
    with pytest.raises(errors.NotExportable, match="scaled by inputs"):
        local.export("ink-wash", "diffusers")


def test_embeddings_go_out_as_clip_l_and_clip_g_and_bundled_beside_a_lora(local):
    base = pocket()
    alone = exported(local, file_of(clip_pair(base, names=("text_encoders_0", "text_encoders_1"))), "kohya")
    assert set(safetensors.numpy.load(alone)) == {"clip_l", "clip_g"}
    beside = exported(local, file_of(peft(layers(base)) | clip_pair(base)), "kohya")
    assert {"bundle_emb.ink-wash.clip_l", "bundle_emb.ink-wash.clip_g"} <= set(safetensors.numpy.load(beside))
    one = exported(local, file_of({"<sks>": numbers(base.token_widths[TE1])}), "kohya")
    assert set(safetensors.numpy.load(one)) == {"clip_l"}


def test_the_original_comes_back_byte_for_byte(local, kohya_file):
    assert exported(local, kohya_file, "original") == kohya_file
