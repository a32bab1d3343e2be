"""The stores of bytes: a folder and S3 behave alike."""

import os
import stat

import pytest

from lora_registry import errors
from lora_registry.blobs import LocalBlobs
from lora_registry.incoming import Incoming
from lora_registry.object_store import ONE_PUT_BYTES, ObjectBlobs
from unit.lora_registry.invariants import NO_GRACE
from unit.lora_registry.makers import layers, peft, pocket, safetensors


@pytest.fixture
def blobs(blobs_url, tmp_path):
    return (
        ObjectBlobs.at(blobs_url, tmp_path / "incoming")
        if "://" in blobs_url
        else LocalBlobs(tmp_path / "blobs")
    )


@pytest.fixture
def store(blobs):
    """Stores bytes and tells their digest."""

    def put(data: bytes) -> str:
        with Incoming(blobs.staging, 2**30) as incoming:
            incoming.write(data)
            incoming.finish()
            blobs.put(incoming)
            return incoming.digest

    return put


def test_bytes_come_back_by_their_digest(blobs, store, lora_file):
    digest = store(lora_file())
    assert blobs.has(digest, len(lora_file()))
    assert not blobs.has(digest, 1)
    with blobs.open(digest) as file:
        assert file.read(10) == lora_file()[:10]
        assert file.seek(-10, os.SEEK_END) == len(lora_file()) - 10
        assert file.read() == lora_file()[-10:]
    assert [(blob.digest, blob.size_bytes) for blob in blobs.stored()] == [(digest, len(lora_file()))]


def test_storing_twice_is_storing_once(blobs, store, lora_file):
    assert store(lora_file()) == store(lora_file())
    assert len(list(blobs.stored())) == 1


def test_a_large_blob_comes_back_whole(blobs, store):
    data = safetensors(peft(layers(pocket(), count=1), rank=400)) + bytes(2 * ONE_PUT_BYTES)
    with blobs.open(store(data)) as file:
        assert file.read() == data


def test_what_is_not_there_is_missing_and_deleting_it_is_nothing(blobs):
    digest = "sha256:" + 64 * "0"
    assert not blobs.has(digest, 1)
    blobs.delete(digest)
    with pytest.raises(errors.BlobMissing):
        blobs.open(digest)


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../etc/passwd", "sha256:" + 64 * "G", "sha256:" + 63 * "0"]
)
def test_nothing_but_a_digest_becomes_a_path(blobs, digest):
    with pytest.raises(ValueError, match="is not a digest"):
        blobs.open(digest)


def test_a_registry_works_on_either_store(opened, blobs_url, database_url, lora_file, kohya_file):
    registry = opened(blobs=blobs_url)
    version = registry.publish("ink-wash", [lora_file()], alias="prod")
    kohya = registry.publish("ink-wash", [kohya_file])
    assert opened(blobs=blobs_url).open(version.digest).read() == lora_file()
    assert registry.plan(kohya.digest)[1].accepted
    assert b"".join(registry.export("ink-wash:prod").pieces) == lora_file()
    registry.delete("ink-wash", 2)
    assert registry.gc(grace_seconds=NO_GRACE).blobs == 1
    assert registry.verify().damaged == ()


def test_damage_is_found_and_the_same_bytes_heal_it(local, lora_file):
    fine = local.publish("fine", [lora_file(1)])
    rotten = local.publish("rotten", [lora_file(2)])
    gone = local.publish("gone", [lora_file(3)])
    path = local._blobs.path(rotten.digest)
    path.chmod(0o644)
    path.write_bytes(lora_file(2)[:-1] + b"\xff")
    local._blobs.path(gone.digest).unlink()
    damaged = {(damage.digest, damage.fact, damage.refs) for damage in local.verify().damaged}
    assert damaged == {(rotten.digest, "corrupt", ("rotten@1",)), (gone.digest, "missing", ("gone@1",))}
    for seed, name in ((2, "rotten"), (3, "gone")):
        assert local.publish(name, [lora_file(seed)]).existing
    assert local.verify().damaged == ()
    assert local.verify().checked == 3
    assert local.open(fine.digest)


def test_a_local_blob_is_read_only_and_a_real_file(local, lora_file):
    version = local.publish("ink-wash", [lora_file()])
    with local.open(version.digest) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o444


def test_an_object_store_that_fails_is_typed_and_tells_no_address(s3, tmp_path, monkeypatch, lora_file):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    blobs = ObjectBlobs.at("s3://loras/x", tmp_path)
    from datetime import timedelta

    from obstore.store import from_url

    blobs._store = from_url(
        "s3://loras/x", retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    )
    with pytest.raises(errors.StorageUnavailable) as refused:
        blobs.open("sha256:" + 64 * "0")
    assert "127.0.0.1" not in str(refused.value)
