"""Datasets: taken in whole or not at all, named by what they hold."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import dataset_files as files
from darkroom.types import SynthesizeRequest
from dataset_files import add, form, jpeg, png, webp, zipped
from lora_registry.errors import InvalidCursor
from service.datasets import incoming as module
from service.datasets import intake
from service.datasets.errors import (
    DatasetNotFound,
    DatasetTooLarge,
    EmptyDataset,
    InvalidArchive,
    InvalidDataset,
    PictureNotFound,
)
from service.datasets.recipes import filled_in
from service.errors import Cancelled, InvalidOption

GOOD = zipped(
    {"foxes/1.png": png(1), "foxes/2.jpg": jpeg(2), "foxes/3.webp": webp(3), "foxes/1.txt": b"a fox\n"}
)


@pytest.fixture
def now():
    return [1_700_000_000.0]


@pytest.fixture
def kept(now):
    with files.datasets_in_memory(clock=lambda: now[0]) as kept:
        yield kept


@pytest.fixture
def datasets(kept):
    return kept[0]


@pytest.fixture
def blobs(kept):
    """Everything in the folder of blobs, files on their way in included."""
    return lambda: sorted(path.name for path in (kept[1] / "training").rglob("*") if path.is_file())


def faults(dataset):
    return [(fault.file, fault.code) for fault in dataset.faults]


def captions(dataset):
    return {picture.file: picture.caption for picture in dataset.pictures}


def test_an_upload_is_found_by_its_id(datasets):
    made = add(datasets, GOOD, name="foxes", prompt="a photo of  sks fox ")
    assert captions(made) == {"1.png": "a fox", "2.jpg": "a photo of sks fox", "3.webp": "a photo of sks fox"}
    assert (made.name, made.existing, made.faults, made.synthesis) == ("foxes", False, [], None)
    assert [(picture.width, picture.height) for picture in made.pictures] == [(24, 32)] * 3
    assert made.size_bytes == sum(len(datasets.open_picture(made.id, place)) for place in range(3))
    assert datasets.get(made.id) == made


def test_what_is_kept_is_the_pixels(datasets):
    made = add(datasets, GOOD)
    kept = datasets.open_picture(made.id, 0)
    assert datasets.open_picture(made.id, made.pictures[0].digest) == kept
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(kept))), files.pixels(1))
    (first, opener), *_ = datasets.pictures(made.id)
    assert (first, opener()) == (made.pictures[0], kept)


def test_the_same_pictures_are_the_same_dataset_however_they_come(datasets):
    made = add(datasets, GOOD)
    others = {"3.webp": webp(3), "1.txt": b"  a   fox", "2.jpg": jpeg(2), "1.png": webp(1)}
    for body, boundary in (
        (zipped(others), None),
        (files.tarred(others), None),
        (files.tarred(others, "w:gz"), None),
        (form(others), b"----parts"),
    ):
        again = add(datasets, body, boundary, name="another")
        assert (again.id, again.existing, again.name) == (made.id, True, "")
    assert len(datasets.list().items) == 1


def test_another_caption_or_name_is_another_dataset(datasets):
    ids = {
        add(datasets, zipped(members)).id
        for members in ({"1.png": png(1)}, {"2.png": png(1)}, {"1.png": png(1), "1.txt": b"a fox"})
    }
    assert len(ids) == 3


def test_one_corrupt_picture_among_good_ones_is_named_and_refuses_the_upload(datasets, blobs):
    body = zipped(
        {"1.png": png(1), "2.jpg": jpeg(2)[:300], "3.png": b"\x80\x04\x95 a pickle", "4.gif": b"GIF89a"}
    )
    with pytest.raises(
        InvalidDataset, match=r"'2.jpg' is a JPEG file that is damaged.*`invalid=skip`"
    ) as refused:
        add(datasets, body)
    assert [(fault.file, fault.code) for fault in refused.value.faults] == [
        ("2.jpg", "picture.corrupt"),
        ("3.png", "picture.unknown"),
        ("4.gif", "picture.unknown"),
    ]
    assert blobs() == []
    assert datasets.list().items == []


def test_or_it_is_left_out_and_listed(datasets):
    body = zipped({"1.png": png(1), "2.jpg": jpeg(2)[:300], "notes.md": b"hello", "more.zip": zipped({})})
    made = add(datasets, body, invalid="skip")
    assert [picture.file for picture in made.pictures] == ["1.png"]
    assert faults(made) == [
        ("2.jpg", "picture.corrupt"),
        ("more.zip", "archive.nested"),
        ("notes.md", "picture.unknown"),
    ]
    assert datasets.get(made.id).faults == made.faults


def test_the_same_pixels_twice_are_kept_once_and_reported(datasets):
    made = add(datasets, zipped({"b.png": png(1), "a.webp": webp(1), "c.png": png(2)}))
    assert [picture.file for picture in made.pictures] == ["a.webp", "c.png"]
    assert faults(made) == [("b.png", "duplicate")]
    assert "'a.webp'" in made.faults[0].message


def test_a_caption_without_a_picture_is_told_of_and_refuses_nothing(datasets):
    made = add(datasets, zipped({"1.png": png(1), "2.txt": b"nobody"}))
    assert faults(made) == [("2.txt", "caption.alone")]


def test_a_caption_may_have_a_byte_order_mark_and_other_case(datasets):
    made = add(datasets, zipped({"Fox.PNG": png(1), "fox.TXT": b"\xef\xbb\xbfein F\xc3\xbcchslein\r\n"}))
    assert captions(made) == {"Fox.PNG": "ein Füchslein"}


def test_a_caption_that_is_not_utf8_or_too_long_is_refused_or_left_out(datasets):
    for text, code in (
        ("ein Füchslein".encode("latin-1"), "caption.not_utf8"),
        (b"a" * 2001, "caption.too_long"),
        (b"a\x00fox", "caption.not_text"),
    ):
        body = zipped({"1.png": png(1), "1.txt": text})
        with pytest.raises(InvalidDataset) as refused:
            add(datasets, body)
        assert [fault.code for fault in refused.value.faults] == [code]
        made = add(datasets, body, invalid="skip", prompt="a fox")
        assert (captions(made), faults(made)) == ({"1.png": "a fox"}, [("1.txt", code)])


def test_two_members_whose_names_differ_in_case_only_are_refused_or_the_first_is_kept(datasets):
    body = zipped({"fox.png": png(1), "FOX.PNG": png(2)})
    with pytest.raises(InvalidDataset, match=r"'FOX.PNG' has the name of another member"):
        add(datasets, body)
    assert captions(add(datasets, body, invalid="skip")) == {"fox.png": ""}


def test_folders_that_lead_to_all_pictures_are_no_part_of_their_names(datasets):
    made = add(datasets, zipped({"x/y/a/1.png": png(1), "x/y/b/1.png": png(2), "x/readme.txt": b"hello"}))
    assert [picture.file for picture in made.pictures] == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    "body",
    [zipped({}), zipped({"folder/": b""}), zipped({"1.txt": b"a fox"}), zipped({"__MACOSX/1.png": png(1)})],
    ids=["nothing", "a folder", "captions only", "hidden only"],
)
def test_an_upload_without_a_picture_is_refused(datasets, blobs, body):
    for invalid in ("refuse", "skip"):
        with pytest.raises(EmptyDataset):
            add(datasets, body, invalid=invalid)
    assert blobs() == []


def test_a_dishonest_archive_is_refused_whatever_may_be_skipped(datasets, blobs):
    link = tarfile.TarInfo("2.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    for body in (
        zipped({"1.png": png(1), "../2.png": png(2)}),
        files.tarred({"1.png": png(1), "2.png": link}),
        GOOD[:-40],
        GOOD[: len(GOOD) // 2],
    ):
        with pytest.raises(InvalidArchive):
            add(datasets, body, invalid="skip")
    assert blobs() == []


def test_too_many_pictures_or_bytes_are_refused(datasets, blobs, monkeypatch):
    monkeypatch.setattr(intake, "MAX_PICTURES", 2)
    with pytest.raises(InvalidArchive, match="more than 2 pictures"):
        add(datasets, GOOD)
    monkeypatch.setattr(intake, "MAX_KEPT_BYTES", 100)
    with pytest.raises(DatasetTooLarge):
        add(datasets, GOOD)
    with module.Incoming(datasets._files.staging, limit_bytes=10) as incoming, pytest.raises(DatasetTooLarge):
        incoming.write(GOOD)
    assert blobs() == []


def test_an_upload_that_was_given_up_is_not_added(datasets, blobs):
    with datasets.receive() as incoming:
        incoming.write(GOOD)
        incoming.give_up()
        with pytest.raises(Cancelled):
            datasets.add(incoming)
    assert blobs() == []


def test_a_picture_that_is_not_there_is_said_so(datasets):
    made = add(datasets, GOOD)
    for which in (3, -1, "sha256:" + "0" * 64):
        with pytest.raises(PictureNotFound, match="numbered from 0 to 2"):
            datasets.open_picture(made.id, which)
    for id in ("sha256:" + "0" * 64, "foxes", "", "sha256:" + "A" * 64, made.id + "\n"):
        with pytest.raises(DatasetNotFound):
            datasets.get(id)


def test_a_deleted_dataset_is_gone_until_it_is_uploaded_again(datasets, now):
    made = add(datasets, GOOD, name="foxes")
    assert {made.id, *(picture.digest for picture in made.pictures)} == datasets.digests()
    datasets.delete(made.id)
    assert datasets.list().items == []
    assert datasets.digests() == set()
    for gone in (datasets.get, datasets.delete, datasets.pictures):
        with pytest.raises(DatasetNotFound):
            gone(made.id)
    now[0] += 60
    back = add(datasets, GOOD, name="back")
    assert (back.id, back.name, back.existing) == (made.id, "back", False)
    assert back.created_at > made.created_at
    assert len(datasets.pictures(made.id)) == 3


def test_what_was_collected_meanwhile_is_stored_again(datasets):
    made = add(datasets, GOOD)
    datasets.delete(made.id)
    for digest in [made.id, *(picture.digest for picture in made.pictures)]:
        datasets._files.delete(digest)
    assert add(datasets, GOOD).existing is False
    assert len(datasets.open_picture(made.id, 2)) > 0


def test_the_list_has_the_newest_first_page_by_page(datasets, now):
    ids = []
    for seed in range(5):
        now[0] += seed % 2  # some at the same moment
        ids.append(add(datasets, zipped({"1.png": png(seed)}), name=f"no {seed}").id)
    found, cursor = [], ""
    while True:
        page = datasets.list(limit=2, cursor=cursor)
        found += page.items
        if not (cursor := page.next_cursor):
            break
    assert sorted(item.id for item in found) == sorted(ids)
    assert [item.created_at for item in found] == sorted((item.created_at for item in found), reverse=True)
    assert found[0].picture_count == 1
    for cursor in ("?", "bm8", "é", "A" * 100):
        with pytest.raises(InvalidCursor):
            datasets.list(cursor=cursor)


def test_a_name_is_short_and_can_be_shown(datasets):
    for name in ("x" * 65, "a\nb"):
        with pytest.raises(InvalidOption, match="64 printable"):
            add(datasets, GOOD, name=name)


def test_pictures_that_the_service_made_know_how(datasets):
    synthesis = filled_in(SynthesizeRequest(prompts=("a fox",), name="foxes"), pocket=True)
    pictures = [("0.png", png(1), "a fox"), ("1.png", png(2), "a fox"), ("2.png", png(1), "a fox")]
    made = datasets.add_pictures(pictures, name="foxes", synthesis=synthesis, model="f" * 64)
    assert [(picture.width, picture.height) for picture in made.pictures] == [(24, 32)] * 2
    assert faults(made) == [("2.png", "duplicate")]
    assert made.synthesis == synthesis.model_copy(update={"name": ""})
    again = datasets.made_by(synthesis.model_copy(update={"name": "other"}), "f" * 64)
    assert again == made.model_copy(update={"existing": True})
    assert datasets.made_by(synthesis, "e" * 64) is None
    assert datasets.made_by(synthesis.model_copy(update={"seed": 1}), "f" * 64) is None
    datasets.delete(made.id)
    assert datasets.made_by(synthesis, "f" * 64) is None
    with pytest.raises(EmptyDataset):
        datasets.add_pictures([])
