"""A disk in front of a store elsewhere."""

import os
import time
from io import BytesIO

import pytest

from lora_registry.blobs import LocalBlobs
from lora_registry.disk_cache import CachedBlobs, DiskCache
from lora_registry.errors import BlobMissing
from lora_registry.registry import Registry
from unit.lora_registry.makers import layers, peft, pocket, safetensors


class Remote(LocalBlobs):
    """A folder that plays a store elsewhere and counts what is read from it."""

    def __init__(self, folder):
        super().__init__(folder)
        self.opened = []

    def open(self, digest):
        self.opened.append(digest)
        return super().open(digest)


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path / "remote")


def cached(remote, tmp_path, budget_bytes=2**20):
    return CachedBlobs(remote, DiskCache(tmp_path / "cache", budget_bytes))


def stored(remote, data: bytes) -> str:
    """Put bytes into the remote as a publish does; any will do."""
    from hashlib import sha256

    digest = f"sha256:{sha256(data).hexdigest()}"
    path = remote.path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


def test_what_was_read_once_is_read_from_the_disk(remote, tmp_path):
    digest = stored(remote, b"x" * 100)
    blobs = cached(remote, tmp_path)
    assert not blobs.is_local(digest)
    for _ in range(3):
        with blobs.open(digest) as file:
            assert file.read() == b"x" * 100
    assert remote.opened == [digest]
    assert blobs.is_local(digest)


def test_wrong_bytes_are_refused_and_not_kept(remote, tmp_path):
    digest = stored(remote, b"right")
    remote.path(digest).write_bytes(b"wrong")
    blobs = cached(remote, tmp_path)
    with pytest.raises(BlobMissing):
        blobs.open(digest)
    assert not blobs.is_local(digest)
    assert not list((tmp_path / "cache").rglob("*.part"))
    remote.path(digest).write_bytes(b"right")
    assert blobs.open(digest).read() == b"right"


def test_the_longest_unread_goes_first(remote, tmp_path):
    import os

    digests = [stored(remote, bytes([n]) * 100) for n in range(3)]
    blobs = cached(remote, tmp_path, budget_bytes=250)
    for n, digest in enumerate(digests[:2]):
        blobs.open(digest).close()
        os.utime(tmp_path / "cache" / digest[7:], (n, n))
    blobs.open(digests[0]).close()
    blobs.open(digests[2]).close()
    assert [blobs.is_local(digest) for digest in digests] == [True, False, True]
    assert DiskCache(tmp_path / "cache", 0).size_bytes() == 200


def test_a_file_that_is_evicted_while_it_is_open_stays_readable(remote, tmp_path):
    one, other = stored(remote, b"1" * 100), stored(remote, b"2" * 100)
    blobs = cached(remote, tmp_path, budget_bytes=100)
    file = blobs.open(one)
    blobs.open(other).close()
    assert not blobs.is_local(one)
    assert file.read() == b"1" * 100


def test_what_is_deleted_from_the_store_is_deleted_from_the_disk(remote, tmp_path):
    digest = stored(remote, b"gone")
    blobs = cached(remote, tmp_path)
    blobs.open(digest).close()
    blobs.delete(digest)
    with pytest.raises(BlobMissing):
        blobs.open(digest)


def test_a_registry_on_s3_keeps_what_it_read_and_tells_the_tier(s3, tmp_path):
    data = safetensors(peft(layers(pocket())))
    with Registry.connect(
        [pocket()], data=tmp_path / "data", blobs=f"{s3}/cached", cache_bytes=2**20
    ) as registry:
        version = registry.publish("ink", BytesIO(data))
        assert registry.tier(version.digest) == "store"
        assert registry.open(version.digest).read() == data
        assert registry.tier(version.digest) == "disk"


def test_a_full_disk_costs_time_and_nothing_else(remote, tmp_path, armed):
    digest = stored(remote, b"x" * 100)
    blobs = cached(remote, tmp_path)
    armed("cache.rename=full")
    with blobs.open(digest) as file:
        assert file.read() == b"x" * 100
    assert not blobs.is_local(digest)
    armed("")
    blobs.open(digest).close()
    assert blobs.is_local(digest)


def test_what_a_crash_left_half_written_goes_with_time_and_what_is_being_written_stays(tmp_path):
    cache = DiskCache(tmp_path / "cache", 2**20)
    cache.put("one", lambda file: file.write(b"1"))
    left, fresh = (tmp_path / "cache" / f"{name}.part" for name in ("left", "fresh"))
    for path in (left, fresh):
        path.write_bytes(b"x" * 100)
    os.utime(left, (time.time() - 2 * 3600,) * 2)
    cache.put("two", lambda file: file.write(b"2"))
    assert not left.exists()
    assert fresh.exists()
