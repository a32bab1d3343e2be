"""A service that is loading, failing, full, late, draining or dead says so in types, and recovers where it can."""

import asyncio
import copy
from dataclasses import replace

import pytest
import torch

from darkroom import DeadlineExceeded, InvalidRequest, Refiner, Unavailable
from in_process import GOOD, LONG, Async, Served, Sync, served
from service import wiring
from service.errors import ModelNotFound
from service.settings import Settings

BOTH = pytest.mark.parametrize("kind", [Sync, Async], ids=["sync", "async"])


def probes(service: Served) -> tuple[int, int]:
    """Statuses of /livez and /readyz; a red probe says when to ask again."""
    replies = [service.http.get(path) for path in ("/livez", "/readyz")]
    assert all(("retry-after" in reply.headers) == (reply.status_code == 503) for reply in replies)
    return replies[0].status_code, replies[1].status_code


@BOTH
def test_a_request_while_loading_is_told_when_to_come_back(kind):
    service = served(wiring.build(Settings(_env_file=None, model="pocket")))
    with pytest.raises(Unavailable) as caught:
        service.caller(kind).generate()
    assert (caught.value.code, caught.value.retry_after_seconds) == ("model_loading", 5)
    assert probes(service) == (200, 503)
    info = service.caller(kind).info()
    assert (info.ready, info.model) == (False, None)


@BOTH
def test_a_model_that_cannot_be_loaded_asks_for_a_restart(kind, serve, monkeypatch):
    def load_engine(_settings, _metrics, _watch):
        raise ModelNotFound("/models/base/unet is missing")

    components = wiring.build(Settings(_env_file=None))
    monkeypatch.setattr(wiring, "load_engine", load_engine)
    components.start()
    components._resident._thread.join(timeout=10)
    service = served(components)
    with pytest.raises(Unavailable) as caught:
        service.caller(kind).generate()
    assert caught.value.code == "engine_stopped"
    assert "/models" not in str(caught.value)
    assert probes(service) == (503, 503)


def test_the_refiner_is_refused_where_there_is_none(serve, models):
    without = replace(models, unets={"base": models.unets["base"]})
    service = serve(without)
    client = service.caller()
    assert client.info().model.refiner is False
    with pytest.raises(InvalidRequest) as caught:
        client.generate(refiner=Refiner())
    assert (caught.value.code, caught.value.errors[0].pointer) == ("invalid_option", "/refiner")
    assert client.generate().image.receipt.refiner is None
    assert client.generate(refiner=Refiner(enabled=False)).image.receipt.base_steps == 4


@BOTH
def test_a_deadline_that_expires_frees_the_engine(kind, service, reference):
    service.engine.costs.forget()  # or it would be refused as too expensive, before any work
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s") as caught:
        service.caller(kind).generate(**LONG, timeout_seconds=0.2)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert service.metric("queue_depth") == 0
    assert service.caller(kind).generate().image.data == reference
    assert service.engine._works == []


def test_what_cannot_be_done_in_time_is_not_begun(serve):
    service = serve()
    with pytest.raises(InvalidRequest) as caught:
        service.caller().generate(**LONG | {"width": 1024, "height": 1024}, timeout_seconds=0.5)
    assert caught.value.code == "too_expensive"
    assert service.metric("queue_depth") == 0


def test_a_full_queue_refuses_and_says_when_to_come_back(serve, reference):
    service = serve(max_queue_seconds=0.001)

    async def two(client):
        first = asyncio.create_task(client.generate(**LONG))
        await service.busy()
        with pytest.raises(Unavailable) as caught:
            await client.generate(**GOOD)
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_seconds >= 1
        first.cancel()
        await asyncio.wait([first])
        assert service.metric("queue_depth") == 0
        return await client.generate(**GOOD)

    assert service.in_a_loop(two).image.data == reference
    assert service.engine._works == []
    assert service.metric("rejected_total", reason="overloaded") == 1


def test_draining_finishes_what_is_in_flight_and_takes_no_more(serve):
    service = serve()

    async def drain(client):
        first = asyncio.create_task(client.generate(**GOOD | {"num_inference_steps": 30}))
        await service.busy()
        service.components.drain()
        with pytest.raises(Unavailable) as caught:
            await client.generate(**GOOD)
        assert caught.value.code == "draining"
        assert caught.value.retry_after_seconds >= 1
        return await first

    assert service.in_a_loop(drain).image.seed == GOOD["seed"]
    assert probes(service) == (200, 503)
    assert service.http.get("/readyz").json()["code"] == "draining"


class Mortal:
    """A UNet that turns into a bug once `dead` is set."""

    def __init__(self, real: torch.nn.Module) -> None:
        self._real, self.config, self.dead = real, real.config, False

    def __call__(self, *args, **kwargs):
        if self.dead:
            raise KeyError("not a fault of the request")
        return self._real(*args, **kwargs)

    def state_dict(self):
        return self._real.state_dict()


@BOTH
def test_a_dead_engine_turns_both_probes_red(kind, serve, models):
    unet = Mortal(models.unets["base"])
    service = serve(replace(models, unets={**models.unets, "base": unet}))
    client = service.caller(kind)
    client.generate()
    assert probes(service) == (200, 200)
    thread, unet.dead = service.engine._thread, True
    for _ in range(2):  # the one that it dies of, and one that comes too late
        with pytest.raises(Unavailable) as caught:
            client.generate()
        assert caught.value.code == "engine_stopped"
    thread.join(timeout=10)
    assert probes(service) == (503, 503)
    assert client.info().ready is False


@BOTH
def test_an_unusable_image_is_its_request_s_fault_alone(kind, serve, models, reference):
    word = models.tokenizer("star").input_ids[1]
    poisoned = copy.deepcopy(models.text_encoder)
    poisoned.get_input_embeddings().weight.data[word] = torch.nan
    client = (service := serve(replace(models, text_encoder=poisoned))).caller(kind)
    with pytest.raises(InvalidRequest, match="seed 7 is unusable: the latents are not finite") as caught:
        client.generate("a red star")
    assert (caught.value.status, caught.value.code) == (422, "unusable_image")
    assert service.metric("unusable_images_total", reason="nan") == 1
    assert client.generate().image.data == reference


def test_a_poisoned_request_does_not_colour_its_neighbour(serve, models, reference):
    poisoned = copy.deepcopy(models.text_encoder)
    poisoned.get_input_embeddings().weight.data[models.tokenizer("star").input_ids[1]] = torch.nan
    service = serve(replace(models, text_encoder=poisoned))

    async def both(client):
        return await asyncio.gather(
            client.generate(**GOOD | {"prompt": "a red star"}),
            client.generate(**GOOD),
            return_exceptions=True,
        )

    bad, good = service.in_a_loop(both)
    assert bad.code == "unusable_image"
    assert good.image.seed == GOOD["seed"]


def test_a_model_that_makes_no_picture_never_becomes_ready(serve, models):
    broken = copy.deepcopy(models.unets["base"])
    broken.conv_out.weight.data[:] = torch.nan
    service = serve(replace(models, unets={**models.unets, "base": broken}))
    assert probes(service) == (503, 503)
    assert service.components.ready().reason == (
        "failed: the image of seed 0 is unusable: "
        "the latents are not finite (a numerical overflow in the model)"
    )
