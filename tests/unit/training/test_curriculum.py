"""Sizes, crops and batches: which picture is shown how, and when."""

import random
from collections import Counter

import numpy as np
import pytest

from service.training.buckets import Crop, crops, nearest, sizes
from service.training.data import Curriculum, Latents
from tests.trainings import noise_examples


def a_curriculum(examples, **changes) -> Curriculum:
    options = {
        "resolution": 64,
        "bucket_px": 16,
        "aspect_buckets": True,
        "random_crop": False,
        "random_flip": False,
        "repeats": 1,
        "batch_size": 4,
        "seed": 0,
    }
    return Curriculum(examples, **(options | changes))


def test_buckets_keep_the_area_in_whole_steps():
    found = sizes(1024, 64)
    assert (1024, 1024) in found
    assert (832, 1216) in found
    for width, height in found:
        assert width % 64 == 0 == height % 64
        assert 0.8 <= width * height / 1024**2 <= 1.0
        assert (height, width) in found


def test_a_picture_goes_to_the_bucket_of_its_shape():
    among = sizes(1024, 64)
    assert nearest(3000, 3000, among) == (1024, 1024)
    wide = nearest(1600, 900, among)
    assert abs(wide[0] / wide[1] - 16 / 9) < 0.1


def test_a_crop_fills_its_size_and_nothing_is_stretched():
    (crop,) = crops(200, 100, (64, 64), random_crop=False, random_flip=False, rng=random.Random(0))
    assert crop == Crop((200, 100), (128, 64), 32, 0, (64, 64))
    assert crop.time_ids == (100, 200, 0, 32, 64, 64)


def test_random_crops_and_flips_are_several_and_not_drawn_once_for_ever():
    curriculum = a_curriculum(
        noise_examples((200, 100)), aspect_buckets=False, random_crop=True, random_flip=True, batch_size=1
    )
    shown = {row.crop for number in range(60) for row in curriculum.batch(number)}
    assert len(shown) >= 6
    assert {crop.flipped for crop in shown} == {True, False}


def test_all_of_a_batch_have_one_size():
    curriculum = a_curriculum(noise_examples(*[(64, 64)] * 5, *[(128, 64)] * 5))
    for number in range(2 * curriculum.batches_per_pass):
        assert len({row.crop.size for row in curriculum.batch(number)}) == 1


def test_a_pass_shows_subjects_as_often_as_repeats_say_and_class_pictures_once():
    subject = noise_examples(*[(64, 64)] * 3)
    examples = [*subject, *noise_examples(*[(64, 64)] * 7, is_class=True)[3:]]
    curriculum = a_curriculum(examples, repeats=3)
    seen = Counter(
        (row.example.caption, row.example.is_class)
        for number in range(curriculum.batches_per_pass)
        for row in curriculum.batch(number)
    )
    assert {count for (_, is_class), count in seen.items() if not is_class} == {3}
    assert {count for (_, is_class), count in seen.items() if is_class} == {1}


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    one, other = (a_curriculum(noise_examples(*[(64, 64)] * 9)) for _ in range(2))
    last = one.batch(20)
    assert [row.example.caption for row in other.batch(20)] == [row.example.caption for row in last]
    assert one.batch(3) == one.batch(3)
    assert one.batch(20) == last


def test_passes_differ_in_order():
    curriculum = a_curriculum(noise_examples(*[(64, 64)] * 8), batch_size=8)
    orders = {tuple(row.example.caption for row in curriculum.batch(number)) for number in range(4)}
    assert len(orders) == 4


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="nothing to learn"):
        a_curriculum([])


def test_latents_belong_to_the_picture_and_its_crop_in_whatever_order_batches_come(models):
    import torch

    curriculum = a_curriculum(noise_examples((64, 64), (128, 64), (64, 128)), random_flip=True, batch_size=1)
    latents = Latents(models.vae, curriculum, lambda: None)
    for number in (7, 2, 5):
        (row,) = curriculum.batch(number)
        pixels = row.example.pixels_HWC()
        shown = np.asarray(pixels)[:, ::-1] if row.crop.flipped else pixels
        if row.crop.resized == (row.example.width, row.example.height):
            tensor = torch.from_numpy(shown.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
            expected = models.vae.encode(tensor).latent_dist.mean * models.vae.config.scaling_factor
            torch.testing.assert_close(latents.means([(row.example, row.crop)]), expected)
        assert latents.draw([row], torch.Generator().manual_seed(1)).shape[2:] == (
            row.crop.size[1] // 4,
            row.crop.size[0] // 4,
        )
