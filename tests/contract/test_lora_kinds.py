"""Every kind of file that people have, through a service: each colours its picture by its weight, and no other."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from darkroom import LoraUse
from in_process import Caller, Served, pixels
from unit.lora_registry.makers import (
    clip_pair,
    kohya,
    layers,
    loha,
    lokr,
    peft,
    peft_dora,
    pocket,
    safetensors,
    with_dora_scale,
)

BASE = pocket()
TOKEN = "starburst"
LONG_NAMED = "ff.net"
TEXT = {"component": "text_encoder_2", "part": "encoder.layers", "count": 18}
PROMPT = {"prompt": f"a red circle on a {TOKEN} background"}

KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "peft": lambda: peft(layers(BASE, count=40)),
    "kohya with mixed ranks and alphas": lambda: kohya(
        BASE, layers(BASE, count=40), ranks=[2, 4, 8], alphas=[8.0, 1.0, None]
    ),
    "convolutions and feed-forwards": lambda: kohya(
        BASE, {**layers(BASE, LONG_NAMED, count=20), **layers(BASE, "resnets", count=20)}, alphas=[8.0]
    ),
    "LoHa": lambda: {
        key: value * 4 if "hada_w" in key else value
        for key, value in loha(BASE, layers(BASE, count=40)).items()
    },
    "LoKr": lambda: {
        key: value * 4 if "lokr_w" in key else value
        for key, value in lokr(BASE, layers(BASE, count=40)).items()
    },
    "DoRA of peft": lambda: peft_dora(layers(BASE, count=40)),
    "DoRA of kohya": lambda: with_dora_scale(kohya(BASE, layers(BASE, count=40))),
    "text encoder": lambda: kohya(BASE, layers(BASE, **TEXT), component="text_encoder_2", alphas=[64.0]),
    "both text encoders and the UNet": lambda: {
        **kohya(BASE, layers(BASE, count=20)),
        **kohya(BASE, layers(BASE, "encoder.layers", "text_encoder"), component="text_encoder"),
        **kohya(BASE, layers(BASE, "encoder.layers", "text_encoder_2"), component="text_encoder_2"),
    },
    "bundle": lambda: {**kohya(BASE, layers(BASE, count=20)), **clip_pair(BASE, f"bundle_emb.{TOKEN}.")},
}


@pytest.fixture(scope="module")
def colours() -> dict[str, bytes]:
    """The files by kind."""
    return {kind: safetensors(make()) for kind, make in KINDS.items()}


@pytest.fixture
def studio(serve, tmp_path) -> Served:
    """A service with an empty registry."""
    return serve(data=tmp_path, audit_seconds=0)


def picture(caller: Caller, *uses: LoraUse | str) -> np.ndarray:
    return pixels(caller.generate(**PROMPT, loras=list(uses)).image.data)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_colours_by_its_weight_and_leaves_nothing_behind(studio, colours, kind):
    caller = studio.caller()
    reference = picture(caller)
    version = studio.components.loras.registry().publish("kind", io.BytesIO(colours[kind]))
    drawn = [picture(caller, LoraUse(ref="kind", weight=weight)) for weight in (1.0, 0.4, -0.4)]
    for place, one in enumerate(drawn):
        assert not np.array_equal(one, reference)
        assert all(not np.array_equal(one, other) for other in drawn[:place])
    assert np.array_equal(picture(caller, version.digest), drawn[0])
    assert np.array_equal(picture(caller), reference)
    assert studio.http.get("/readyz").status_code == 200
    assert studio.metric("base_checksum_ok") == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bundle"])
def test_a_weight_of_zero_is_no_lora_at_all(studio, colours, kind):
    caller = studio.caller()
    studio.components.loras.registry().publish("kind", io.BytesIO(colours[kind]))
    assert np.array_equal(picture(caller, LoraUse(ref="kind", weight=0)), picture(caller))


def test_a_bundles_token_means_something_only_while_it_is_used(studio, colours):
    """Its embedding counts where a prompt says it, whatever the weight of its LoRA."""
    caller = studio.caller()
    studio.components.loras.registry().publish("bundle", io.BytesIO(colours["bundle"]))
    plain = picture(caller)
    learned = picture(caller, LoraUse(ref="bundle", weight=0))
    assert not np.array_equal(learned, plain)
    unsaid = {"prompt": "a red circle on a blue background"}
    zero = caller.generate(**unsaid, loras=[LoraUse(ref="bundle", weight=0)])
    assert np.array_equal(pixels(zero.image.data), pixels(caller.generate(**unsaid).image.data))
    assert np.array_equal(picture(caller), plain)
