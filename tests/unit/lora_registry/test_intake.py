"""Details of intake that the zoo does not show: bounds, numbers, hostile bytes."""

import json
import struct
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.families import sdxl
from lora_registry.header import Tensor, UnreadableHeader, read_header
from lora_registry.inspection import inspect
from lora_registry.keys import parse_key
from lora_registry.metadata import published, trigger_words
from lora_registry.values import CHUNK_BYTES, summarise
from unit.lora_registry.makers import bfloat16, kohya, layers, numbers, peft, pocket, safetensors
from unit.lora_registry.zoo import specimen

BASE = pocket()
FILE = safetensors(kohya(BASE, layers(BASE, count=2), ranks=[1]))


def look(data: bytes):
    return inspect(BytesIO(data), len(data), [BASE])


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_file_with_any_byte_changed_gets_a_verdict_and_no_exception(at, value):
    data = bytearray(FILE)
    data[at % len(data)] = value
    found = look(bytes(data))
    assert found.accepted or found.reasons


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
def test_noise_is_refused_and_raises_nothing(data):
    assert not look(data).accepted
    assert not look(struct.pack("<Q", len(data)) + data).accepted


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda c: st.lists(c) | st.dictionaries(st.text(max_size=5), c),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(value=JSON, where=st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "entry"]))
def test_whatever_json_stands_in_the_header_the_answer_is_a_verdict(value, where):
    entry: object = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}
    header = {"a": entry}
    if where == "entry":
        header["a"] = value
    elif where == "__metadata__":
        header[where] = value
    else:
        entry[where] = value
    text = json.dumps(header).encode()
    assert not look(struct.pack("<Q", len(text)) + text + b"\0\0").accepted


@settings(max_examples=200, deadline=None)
@given(key=st.text(alphabet="abclorunet_.ABw01", max_size=40))
def test_any_tensor_name_can_be_taken_apart(key):
    slot = parse_key(key)
    assert slot is None or slot.role


@settings(max_examples=60, deadline=None)
@given(config=JSON)
def test_any_adapter_configuration_gets_a_verdict(config):
    look(
        safetensors(
            peft(layers(BASE, count=1)),
            {
                "lora_adapter_metadata": json.dumps(
                    {"unet.alpha_pattern": config, "unet.rank_pattern": config, "unet.lora_alpha": config}
                )
            },
        )
    )


def test_numbers_are_read_in_pieces_and_never_all_at_once(tmp_path):
    chosen = layers(sdxl(), "ff.net.2", count=4)
    data = safetensors(peft(chosen, rank=256))
    path = tmp_path / "big.safetensors"
    path.write_bytes(data)
    assert len(data) > 8 * CHUNK_BYTES / 2
    size = len(data)
    del data
    with path.open("rb") as file:
        inspect(file, size, [sdxl()])
        file.seek(0)
        tracemalloc.start()
        assert inspect(file, size, [sdxl()]).accepted
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * CHUNK_BYTES


@pytest.mark.parametrize("make", [lambda v: v.astype("<f2"), lambda v: v.astype("<f4"), bfloat16])
def test_a_norm_is_right_in_each_type(make):
    values = numbers(300, 70, dtype="<f4", size=1.0)
    tensor = make(values)
    data, dtype = (
        (tensor.data, "BF16")
        if not isinstance(tensor, np.ndarray)
        else (tensor.tobytes(), {2: "F16", 4: "F32"}[tensor.itemsize])
    )
    summary = summarise(BytesIO(bytes(5) + data), Tensor(dtype, (300, 70), 5, 5 + len(data)))
    assert summary.is_finite
    assert summary.norm == pytest.approx(float(np.linalg.norm(values)), rel=5e-3)
    assert summary.first == pytest.approx(float(values[0, 0]), rel=1e-2)


@pytest.mark.parametrize("at", [0, 1_500_000, 2**21 - 1, 2**21])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_number_is_found_in_any_piece(at, value):
    values = np.zeros(2**21 + 1, "<f2")
    values[at] = value
    data = values.tobytes()
    assert not summarise(BytesIO(data), Tensor("F16", values.shape, 0, len(data))).is_finite


def test_a_real_headers_560_modules_are_judged_from_the_header_alone():
    chosen = {name: layer for name, layer in sdxl().layers["unet"].items() if ".attn" in name}
    data = safetensors(kohya(sdxl(), chosen, ranks=[1]))
    header = read_header(BytesIO(data), len(data))
    cut = BytesIO(data[: header.data_start])
    assert read_header(cut, len(data)) == header
    assert len(inspect(BytesIO(data), len(data), [sdxl()]).modules) == 560


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_output_name", "mine"),
        ("modelspec.author", "Jane"),
        ("ss_network_dim", "/etc/passwd"),
        ("ss_network_dim", "1" * 30),
        ("ss_base_model_version", "a/b"),
        ("ss_base_model_version", "~jane"),
        ("modelspec.architecture", "../../x"),
        ("ss_tag_frequency", "{}"),
        ("ss_resolution", "(1024, 1024); rm"),
    ],
)
def test_metadata_off_the_list_or_of_the_wrong_form_stays_inside(key, value):
    assert published({key: value}) == {}


@pytest.mark.parametrize("frequency", ["", "[]", "{", '{"a": 1}', '{"a": {"b": "c"}}', "[" * 100_000])
def test_broken_tag_counts_are_no_triggers(frequency):
    assert trigger_words({"ss_tag_frequency": frequency, "ss_dataset_dirs": frequency}) == ()


def test_the_header_is_never_read_past_its_limit():
    class Guarded(BytesIO):
        def read(self, size=-1):
            assert 0 <= size <= 8 * 2**20
            return super().read(size)

    data = specimen("header of 9 MiB").data
    with pytest.raises(UnreadableHeader, match="9437184 bytes"):
        read_header(Guarded(data), 10**9)
