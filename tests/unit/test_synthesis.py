"""Datasets that the resident model makes."""

import asyncio
import re
from types import SimpleNamespace

import pytest

import dataset_files as files
from darkroom.types import SynthesizeRequest
from service.dataset_library import DatasetLibrary
from service.datasets.errors import EmptyDataset
from service.errors import DeadlineExceeded, InvalidOption, ModelLoading, Overloaded, UnusableImage
from service.synthesis import PATIENCE_SECONDS, Synthesis

FOXES = SynthesizeRequest(prompts=("a fox", "a (red)++ fox"), images_per_prompt=3, name="foxes")


class Studio:
    """A Synthesis over a generation that draws noise, or does what a test says instead."""

    def __init__(self, datasets):
        self.asked, self.at_once, self.most_at_once = [], 0, 0
        self.instead, self.slept = {}, []
        self.models = SimpleNamespace(name="pocket", fingerprint="f" * 64)
        self.library = DatasetLibrary(lambda: datasets)
        self.synthesis = Synthesis(
            self,
            self.library,
            lambda: SimpleNamespace(models=self.models),
            sleep=self.sleep,
            now=lambda: sum(self.slept),
        )

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def generate(self, request):
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if failures := self.instead.get(request.seed):
                raise failures.pop(0)
        finally:
            self.at_once -= 1
        return SimpleNamespace(images=[SimpleNamespace(data=files.png(request.seed))])

    def make(self, request=FOXES):
        return asyncio.run(self.synthesis.synthesize(request))

    def events(self, request=FOXES):
        async def all_of_them():
            return [event async for event in self.synthesis.events(request)]

        return asyncio.run(all_of_them())

    def seed(self, place):
        from service.datasets.recipes import seed_of

        return seed_of(0, place)


@pytest.fixture
def studio():
    with files.datasets_in_memory() as (datasets, _):
        studio = Studio(datasets)
        yield studio
        studio.library.close()


def busy(seconds=30):
    return Overloaded(backlog_seconds=100, limit_seconds=100, retry_after_seconds=seconds)


def test_the_pictures_are_made_and_kept_under_their_captions(studio):
    *told, made = studio.events()
    assert [(picture.file, picture.caption) for picture in made.pictures] == [
        (f"000{place}.png", "a fox" if place < 3 else "a red fox") for place in range(6)
    ]
    assert (made.name, made.existing) == ("foxes", False)
    assert (made.synthesis.num_inference_steps, made.synthesis.guidance_scales) == (20, (7.5,))
    assert [(event.done, event.total) for event in told] == [(count, 6) for count in range(7)]
    assert asyncio.run(studio.library.picture(made.id, 4)) == files.png(studio.seed(4))


def test_the_same_synthesis_again_is_the_same_dataset_and_costs_nothing(studio):
    made = studio.make()
    again = studio.make(FOXES.model_copy(update={"name": "other", "num_inference_steps": 20}))
    assert again == made.model_copy(update={"existing": True})
    assert studio.events() == [again]
    assert len(studio.asked) == 6


def test_other_weights_make_other_pictures(studio):
    studio.make()
    studio.models.fingerprint = "e" * 64
    assert studio.make().existing is True  # this generation draws the same; it was asked all the same
    assert len(studio.asked) == 12


def test_one_is_in_the_engine_at_once_so_that_it_comes_out_the_same(studio):
    studio.make(SynthesizeRequest(recipe="wrong"))
    assert len(studio.asked) == 78
    assert studio.most_at_once == 1


def test_a_full_queue_is_waited_out(studio):
    studio.instead = {studio.seed(1): [busy(30), busy(20)]}
    assert len(studio.make().pictures) == 6
    assert studio.slept == [30, 20]


def test_but_not_for_ever(studio):
    studio.instead = {studio.seed(1): [busy(PATIENCE_SECONDS / 4) for _ in range(9)]}
    with pytest.raises(Overloaded):
        studio.make()
    assert sum(studio.slept) <= PATIENCE_SECONDS
    assert asyncio.run(studio.library.list()).items == []


def test_a_picture_that_the_model_cannot_make_is_left_out_and_told(studio):
    studio.instead = {studio.seed(2): [UnusableImage("black", seed=studio.seed(2))]}
    made = studio.make()
    assert [picture.file for picture in made.pictures] == [f"000{place}.png" for place in (0, 1, 3, 4, 5)]
    (fault,) = made.faults
    assert (fault.file, fault.code) == ("0002.png", "picture.unusable")
    assert re.search("it is black", fault.message)


def test_where_none_can_be_made_there_is_no_dataset(studio):
    studio.instead = {studio.seed(place): [UnusableImage("flat", seed=1)] for place in range(6)}
    with pytest.raises(EmptyDataset, match=r"the first of 6 faults: '0000.png' the image of seed 1"):
        studio.make()


def test_a_failure_ends_it_and_keeps_nothing(studio):
    studio.instead = {studio.seed(0): [DeadlineExceeded("too slow")]}
    with pytest.raises(DeadlineExceeded):
        studio.make(SynthesizeRequest(prompts=("a fox",), images_per_prompt=64))
    assert len(studio.asked) == 1
    assert asyncio.run(studio.library.list()).items == []


def test_a_caller_who_leaves_ends_it(studio):
    async def story():
        task = asyncio.ensure_future(studio.synthesis.synthesize(SynthesizeRequest(recipe="wrong")))
        while not studio.asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert studio.at_once == 0

    asyncio.run(story())
    assert len(studio.asked) == 1


def test_what_cannot_be_done_is_refused_before_anything_is_made(studio):
    with pytest.raises(InvalidOption):
        studio.make(SynthesizeRequest(prompts=("a fox",) * 100, images_per_prompt=64))

    def loading():
        raise ModelLoading(retry_after_seconds=5)

    studio.synthesis._engine = loading
    with pytest.raises(ModelLoading):
        studio.make()
    assert studio.asked == []
