"""Arranged adapters on the disk: the same again, and as good as absent where they are damaged."""

import io

import pytest
import torch

from adapters import random_adapter
from lora_registry.disk_cache import DiskCache
from lora_registry.errors import StorageUnavailable
from service.engine.loras import arranged_files
from service.engine.loras.arranged import Arranged, arrange
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter
from service.engine.loras.residency import HostResidency


@pytest.fixture
def arranged(models) -> Arranged:
    """Runs of two components, a change that is no plain LoRA, and an embedding whose token is odd."""
    plain = random_adapter(models, 1)
    text = random_adapter(models, 2, component="text_encoder")
    shape = dict(models.weights["unet"].pristine())["conv_in"].shape
    factors = {
        "hada_w1_a": torch.randn(shape[0], 2),
        "hada_w1_b": torch.randn(2, shape[1:].numel()),
        "hada_w2_a": torch.randn(shape[0], 2),
        "hada_w2_b": torch.randn(2, shape[1:].numel()),
    }
    unet = {**plain.changes["unet"], "conv_in": Change("loha", 0.25, factors)}
    changes = {"unet": unet, "text_encoder": text.changes["text_encoder"]}
    embeddings = {'<it\'s "0.up" ünï>': {"text_encoder_2": torch.randn(3, 96)}}
    return arrange(Adapter(plain.digest, changes, embeddings, 0), models.layout)


def written(arranged: Arranged) -> bytes:
    file = io.BytesIO()
    arranged_files.write(arranged, file)
    return file.getvalue()


def test_what_is_read_back_is_what_was_written(arranged):
    again = arranged_files.read(io.BytesIO(written(arranged)))
    assert again is not None
    assert again.digest == arranged.digest
    assert set(again.components) == {"unet", "text_encoder"}
    for one, other in zip(arranged._tensors(), again._tensors(), strict=True):
        assert torch.equal(one, other)
    ((place, change),) = again.components["unet"].singles
    assert (place, change.algorithm, change.scale) == (
        arranged.components["unet"].singles[0][0],
        "loha",
        0.25,
    )
    assert list(again.embeddings) == list(arranged.embeddings)


@pytest.mark.parametrize("at", [0, 20, -200, -1])
def test_a_flipped_bit_anywhere_makes_it_absent(arranged, at):
    data = bytearray(written(arranged))
    data[at] ^= 1
    assert arranged_files.read(io.BytesIO(data)) is None


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_file_that_was_cut_is_absent(arranged, length):
    assert arranged_files.read(io.BytesIO(written(arranged)[:length])) is None


def test_another_model_or_dtype_has_files_of_its_own(models):
    layout = models.layout
    other = {**layout, "unet": dict(list(layout["unet"].items())[:-1])}
    names = {
        arranged_files.suffix_for(layout, torch.float32),
        arranged_files.suffix_for(layout, torch.float16),
        arranged_files.suffix_for(other, torch.float32),
    }
    assert len(names) == 3


class Nothing:
    """A source that has nothing, for residencies that must do with the disk."""

    def tier(self, digest):
        return "store"

    def plan(self, digest):
        raise StorageUnavailable("the store is away")

    def open(self, digest):
        raise StorageUnavailable("the store is away")


def residency(models, disk) -> HostResidency:
    return HostResidency(Nothing, models.layout, dtype=torch.float32, budget_bytes=0, disk=disk)


def test_what_is_on_the_disk_serves_while_the_store_is_away(models, arranged, tmp_path):
    disk = DiskCache(tmp_path, 1 << 30)
    host = residency(models, disk)
    disk.put(host._key(arranged.digest), lambda file: arranged_files.write(arranged, file))
    assert host.fetch(arranged.digest).tier == "disk"


def test_a_damaged_one_goes_and_the_store_is_asked(models, arranged, tmp_path):
    disk = DiskCache(tmp_path, 1 << 30)
    host = residency(models, disk)
    disk.put(host._key(arranged.digest), lambda file: file.write(written(arranged)[:-1] + b"?") and None)
    with pytest.raises(StorageUnavailable):
        host.fetch(arranged.digest)
    assert host._key(arranged.digest) not in disk


def test_a_disk_that_cannot_be_read_is_passed_over(models, arranged, tmp_path, monkeypatch):
    disk = DiskCache(tmp_path, 1 << 30)

    def broken(_key):
        raise StorageUnavailable("the disk is away")

    monkeypatch.setattr(disk, "open", broken)
    with pytest.raises(StorageUnavailable, match="the store is away"):
        residency(models, disk).fetch(arranged.digest)
