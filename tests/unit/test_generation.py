"""From a request to files: defaults, recipes, and where the work is done."""

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from darkroom.types import GenerateRequest, Output, Refiner
from fake_engine import TIMINGS, TOKENS, FakeEngine, no_loras
from service import generation as module
from service import images
from service.engine.orders import HandOver
from service.errors import InvalidOption, InvalidPrompt, TooExpensive, UnusableImage
from service.generation import Generation
from service.metrics import Metrics
from service.runs import Runs
from service.translation import order_from

ENGINE = FakeEngine()


def order(**fields):
    return order_from(
        GenerateRequest(prompt="a fox", **fields), ENGINE.models, first_seed=fields.get("seed", 5)
    )


def engine_without_refiner():
    return FakeEngine(models=SimpleNamespace(default_edge=64, has_refiner=False))


class Studio:
    """A Generation over a fake engine that finishes everything, or does `instead`."""

    def __init__(self, instead=None) -> None:
        self.engine, self.metrics = FakeEngine(), Metrics()
        self.instead = instead or (lambda work: work.finish())
        self.encoding = ThreadPoolExecutor(2, thread_name_prefix="encode-image")
        self.generation = Generation(
            engine=lambda: self.engine,
            adapters=no_loras(),
            runs=Runs(max_queue_seconds=100, metrics=self.metrics),
            encoding=self.encoding,
            metrics=self.metrics,
            versions={"darkroom": "1"},
            default_timeout_seconds=20,
        )

    def make(self, **fields):
        self.engine.works.clear()

        async def main():
            task = asyncio.create_task(
                self.generation.generate(GenerateRequest(**{"prompt": "a fox"} | fields))
            )
            while not (self.engine.works or task.done()):
                await asyncio.sleep(0)
            for work in self.engine.works:
                self.instead(work)
            return await task

        return asyncio.run(main())


@pytest.fixture
def studio():
    return Studio()


def test_what_a_request_leaves_open_the_model_decides():
    made = order()
    assert (made.width, made.height) == (64, 64)
    assert made.original_size == made.target_size == (64, 64)
    assert made.hand_over == HandOver(0.8, 6.0, 2.5)
    assert made.negative_prompt is None
    assert made.negative_original_size is made.negative_target_size is None


def test_sizes_that_are_told_to_the_model_are_height_first_and_follow_the_image():
    made = order(width=128, height=72)
    assert made.original_size == made.target_size == (72, 128)
    made = order(width=128, height=72, original_size=(10, 20), target_size=(0, 0))
    assert (made.original_size, made.target_size) == ((10, 20), (0, 0))


def test_an_empty_negative_prompt_is_a_prompt():
    assert order(negative_prompt="").negative_prompt.plain == ""


def test_image_i_has_the_seed_plus_i_and_seeds_go_around():
    assert order(seed=7, num_images=3).seeds == (7, 8, 9)
    assert order(seed=2**64 - 2, num_images=3).seeds == (2**64 - 2, 2**64 - 1, 0)


def test_the_refiner_can_be_left_out_and_is_left_out_where_there_is_none():
    assert order(refiner=Refiner(enabled=False)).hand_over is None
    request = GenerateRequest(prompt="a fox")
    assert order_from(request, engine_without_refiner().models, first_seed=0).hand_over is None


def test_a_refiner_that_is_not_there_cannot_be_asked_for():
    request = GenerateRequest(prompt="a fox", refiner=Refiner(denoising_end=0.5))
    with pytest.raises(InvalidOption) as caught:
        order_from(request, engine_without_refiner().models, first_seed=0)
    assert caught.value.pointer == "/refiner"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_fault_in_a_prompt_names_the_prompt(field):
    with pytest.raises(InvalidPrompt) as caught:
        order_from(GenerateRequest(**{"prompt": "a fox"} | {field: "((a fox)"}), ENGINE.models, first_seed=0)
    assert (caught.value.field, caught.value.position) == (field, 0)


def test_lcm_makes_fifty_steps_at_most():
    assert order(scheduler="lcm", num_inference_steps=50).num_inference_steps == 50
    with pytest.raises(InvalidOption, match="at most 50 steps; 51") as caught:
        order(scheduler="lcm", num_inference_steps=51)
    assert caught.value.pointer == "/num_inference_steps"


def test_files_carry_the_receipt_of_their_own_image(studio):
    made = studio.make(seed=9, num_images=2)
    assert [(image.index, image.seed) for image in made.images] == [(0, 9), (1, 10)]
    for image in made.images:
        assert images.read_receipt(image.data) == image.receipt
        assert image.receipt.seed == image.seed
        assert (image.receipt.base_steps, image.receipt.refiner.num_inference_steps) == (4, 1)
        assert (image.receipt.model, image.receipt.versions) == ("fake", {"darkroom": "1"})


def test_a_seed_that_is_left_open_is_drawn_from_32_bits(studio, monkeypatch):
    asked = []
    monkeypatch.setattr(module.secrets, "randbelow", lambda below: asked.append(below) or 123)
    assert studio.make().images[0].seed == 123
    assert asked == [2**32]


def test_pixels_are_encoded_in_threads_of_their_own(studio, monkeypatch):
    threads, encode = set(), images.encode

    def listen(*arguments):
        threads.add(threading.current_thread().name)
        return encode(*arguments)

    monkeypatch.setattr(images, "encode", listen)
    studio.make(num_images=2)
    assert threads
    assert all(name.startswith("encode-image") for name in threads)


def test_timings_are_the_engine_s_plus_the_encoding(studio):
    made = studio.make()
    told = made.timings.model_dump(exclude={"encode_image", "total"})
    assert told == TIMINGS.model_dump(exclude={"encode_image", "total"})
    assert 0 < made.timings.encode_image < made.timings.total
    count = studio.metrics.registry.get_sample_value("darkroom_stage_seconds_count", {"stage": "base"})
    assert (count, studio.metrics.registry.get_sample_value("darkroom_images_total")) == (1, 1)


def test_tokens_are_told_where_asked(studio):
    assert studio.make().tokens is None
    assert studio.make(tokens=True).tokens == TOKENS


def test_the_json_answer_holds_the_same_files(studio):
    made = studio.make(num_images=2, output=Output(format="webp"))
    response = made.response()
    assert (response.id, response.model, response.timings) == (made.id, "fake", made.timings)
    for image, finished in zip(response.images, made.images, strict=True):
        assert base64.b64decode(image.b64) == finished.data
        assert (image.media_type, image.width, image.height) == ("image/webp", 64, 64)


def test_a_request_s_own_deadline_goes_before_the_service_s(studio):
    studio.engine.seconds = 25
    with pytest.raises(TooExpensive, match="it has 20 s"):
        studio.make()
    assert studio.make(timeout_seconds=30).images


def test_unusable_images_are_counted_by_their_defect():
    studio = Studio(instead=lambda work: work.fail(UnusableImage("black", seed=1)))
    with pytest.raises(UnusableImage):
        studio.make()
    count = studio.metrics.registry.get_sample_value("darkroom_unusable_images_total", {"reason": "black"})
    assert count == 1


def test_a_caller_who_leaves_cancels_the_work(studio):
    async def main():
        task = asyncio.create_task(studio.generation.generate(GenerateRequest(prompt="a fox")))
        while not studio.engine.works:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert studio.engine.works[0].cancelled
