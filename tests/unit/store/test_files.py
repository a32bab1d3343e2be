"""Files of datasets and jobs are blobs of any kind, out of the registry's sight."""

import pytest

import servers
from lora_registry.blobs import LocalBlobs
from lora_registry.errors import InvalidCursor, StorageFull
from lora_registry.object_store import ObjectBlobs
from service.store.cursors import cursor_at, read_cursor
from service.store.files import files, put_bytes, read_bytes

PICTURE = b"\x89PNG\r\n\x1a\n and more of it"


def test_any_bytes_are_kept_under_their_digest(data):
    store = files("", data)
    for content in (PICTURE, b"", b"PK\x03\x04", bytes(3 * 2**20)):
        digest = put_bytes(store, content)
        assert digest.startswith("sha256:")
        assert read_bytes(store, digest) == content
    assert list(store.staging.iterdir()) == []


def test_a_registry_in_the_same_folder_does_not_see_them(data):
    put_bytes(files(str(data / "blobs"), data), PICTURE)
    assert list(LocalBlobs(data / "blobs").stored()) == []


def test_a_registry_in_the_same_bucket_does_not_see_them(data):
    with servers.s3() as url:
        store = files(f"{url}/shared/", data)
        digest = put_bytes(store, PICTURE)
        assert read_bytes(store, digest) == PICTURE
        assert [blob.digest for blob in store.stored()] == [digest]
        assert list(ObjectBlobs.at(f"{url}/shared").stored()) == []


def test_a_full_disk_leaves_no_file_behind(data, armed):
    store = files("", data)
    armed("incoming.write=full")
    with pytest.raises(StorageFull):
        put_bytes(store, PICTURE)
    assert list(store.staging.iterdir()) == []
    assert list(store.stored()) == []


def test_a_cursor_leads_back_to_its_place():
    assert read_cursor(cursor_at(1_700_000_000_000, "job-1")) == (1_700_000_000_000, "job-1")


@pytest.mark.parametrize(
    "text", ["x", "!!!", "W10", "bnVsbA", "WyJhIiwgImIiXQ", "WzEsICIAIl0", "ä", "Wy0xLCAiYSJd"]
)
def test_a_cursor_of_another_make_is_refused(text):
    with pytest.raises(InvalidCursor, match="begin without one"):
        read_cursor(text)
