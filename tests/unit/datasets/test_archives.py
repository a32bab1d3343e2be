"""Uploads taken apart, honest ones and others."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from contextlib import suppress

import pytest

import dataset_files as files
from service.datasets import archives, forms
from service.datasets.errors import InvalidArchive

GOOD = {"a.png": b"one", "b/c.png": b"two", "b/c.txt": b"three"}
MAKERS = {
    "zip": files.zipped,
    "stored zip": lambda members: files.zipped(members, zipfile.ZIP_STORED),
    "tar": files.tarred,
    "tar.gz": lambda members: files.tarred(members, "w:gz"),
    "pax": lambda members: files.tarred(members, "w:"),
}


def members(body, folder):
    return {member.name: member.data for member in archives.members(io.BytesIO(body), folder)}


def parts(body, boundary=b"----parts"):
    return {member.name: member.data for member in forms.parts(io.BytesIO(body), boundary)}


@pytest.fixture
def refusal(tmp_path):
    def of(body, boundary=None):
        with pytest.raises(InvalidArchive) as refused:
            members(body, tmp_path) if boundary is None else parts(body, boundary)
        return refused.value.code

    return of


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_members_come_out_as_they_went_in(make, tmp_path):
    assert members(make(GOOD), tmp_path) == GOOD
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_a_form_are_members_too():
    assert parts(files.form(GOOD)) == GOOD
    large = {"a.png": random.Random(0).randbytes(1_000_000), "b.png": b"\r\n------part\r\n--"}
    assert parts(files.form(large)) == large


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_files_that_systems_hide_are_skipped(make, tmp_path):
    hidden = dict.fromkeys(
        ["__MACOSX/._a.png", ".DS_Store", "b/.DS_Store", "Thumbs.db", "b/thumbs.db", ".git/x"], b"x"
    )
    assert members(make(GOOD | hidden), tmp_path) == GOOD
    assert parts(files.form(GOOD | hidden)) == GOOD


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "b/../../a.png",
        "/etc/a.png",
        "C:\\a.png",
        "..\\a.png",
        "b\\..\\..\\a.png",
        ".",
        "./.",
        "a\nb.png",
    ],
)
def test_a_name_that_leads_out_or_cannot_be_shown_refuses_the_upload(make, name, refusal):
    assert refusal(make(GOOD | {name: b"x"})) == "member.name"


def test_names_of_windows_and_of_decomposed_letters_are_made_alike(tmp_path):
    assert list(members(files.zipped({"b\\é.png": b"x"}), tmp_path)) == ["b/é.png"]
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    assert list(members(files.tarred({"./": folder, "./b//c.png": b"x"}), tmp_path)) == ["b/c.png"]
    assert list(members(files.zipped({"./": b"", "./b/c.png": b"x"}), tmp_path)) == ["b/c.png"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_refuse_the_upload(kind, refusal):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = kind, "/etc/passwd"
    assert refusal(files.tarred({"a.png": link})) == "member.link"


def test_a_link_in_a_zip_refuses_the_upload(refusal):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert refusal(file.getvalue()) == "member.link"


def test_a_bomb_is_refused_before_it_unfolds(refusal):
    zeros = bytes(archives.RATIO_FROM_BYTES + 1)
    assert refusal(files.zipped({"a.png": zeros})) == "archive.bomb"
    assert refusal(files.tarred({"a.png": zeros}, "w:gz")) == "archive.bomb"
    assert refusal(gzip.compress(zeros)) == "archive.bomb"


def test_a_member_that_claims_less_than_it_holds_is_refused(refusal):
    body = bytearray(files.zipped({"a.png": bytes(1000)}))
    directory = body.index(b"PK\x01\x02")
    body[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    assert refusal(bytes(body)) == "archive.corrupt"


def test_a_list_of_members_of_impossible_size_is_not_read(refusal):
    body = files.zipped(GOOD)
    end = body.index(b"PK\x05\x06")
    huge = body[:end] + bytes(archives._MAX_DIRECTORY_BYTES + 1)
    record = bytearray(body[end:])
    record[12:16] = (archives._MAX_DIRECTORY_BYTES + 1).to_bytes(4, "little")
    assert refusal(huge + bytes(record)) == "archive.corrupt"


def test_a_tar_header_of_impossible_size_is_not_read(refusal):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8 * 2**30
    assert refusal(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)) == "archive.corrupt"


def test_members_are_bounded_in_number_and_size(monkeypatch, refusal):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for make in MAKERS.values():
        assert refusal(make(GOOD)) == "archive.too_many"
    assert refusal(files.form(GOOD), b"----parts") == "archive.too_many"
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 4)
    for make in MAKERS.values():
        assert refusal(make({"a.png": b"12345"})) in ("member.too_large", "archive.corrupt")
    assert refusal(files.form({"a.png": b"12345"}), b"----parts") == "member.too_large"


def test_the_content_is_bounded_in_all(monkeypatch, refusal):
    monkeypatch.setattr(archives, "MAX_CONTENT_BYTES", 10)
    for make in MAKERS.values():
        assert refusal(make(GOOD)) == "archive.bomb"
    assert refusal(files.form(GOOD), b"----parts") == "archive.bomb"


def test_an_encrypted_zip_is_refused(refusal):
    body = bytearray(files.zipped(GOOD))
    place = -1
    while (place := body.find(b"PK\x01\x02", place + 1)) >= 0:
        body[place + 8] |= 1
    assert refusal(bytes(body)) == "archive.encrypted"


def test_rare_compression_is_refused(refusal):
    assert refusal(files.zipped(GOOD, zipfile.ZIP_LZMA)) == "archive.compression"


@pytest.mark.parametrize("body", [b"", b"hello", files.png(), gzip.compress(b"no tar"), bytes(1024)])
def test_what_is_no_archive_is_refused(body, refusal):
    assert refusal(body) == "archive.unknown"


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_archive_that_is_cut_off_anywhere_is_refused(make, refusal):
    # A tar file is padded behind its end, which nobody misses.
    content = {f"{number}.png": random.Random(number).randbytes(700) for number in range(3)}
    body = make(content)
    whole = 3 * (512 + 1024) if body[257:262] == b"ustar" else len(body) - 1
    for size_bytes in range(600, whole, 101):
        assert refusal(body[:size_bytes]) == "archive.corrupt", size_bytes


def test_a_form_that_is_cut_off_anywhere_is_refused(refusal):
    body = files.form(GOOD)
    for size_bytes in range(len(body) - 2):
        assert refusal(body[:size_bytes], b"----parts") == "archive.corrupt", size_bytes


def test_a_field_of_a_form_that_is_no_file_is_refused(refusal):
    body = b'------parts\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n------parts--\r\n'
    assert refusal(body, b"----parts") == "form.field"


def test_damaged_bytes_never_end_in_another_error(tmp_path):
    rng = random.Random(0)
    for make in MAKERS.values():
        whole = make(GOOD)
        for _ in range(100):
            body = bytearray(whole)
            for _ in range(4):
                body[rng.randrange(len(body))] = rng.randrange(256)
            with suppress(InvalidArchive):
                members(bytes(body), tmp_path)
    whole = files.form(GOOD)
    for _ in range(500):
        body = bytearray(whole)
        body[rng.randrange(len(body))] = rng.randrange(256)
        with suppress(InvalidArchive):
            parts(bytes(body))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; boundary="a b"', b"a b"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=" + "a" * 100, b""),
        ("application/zip", None),
        ("", None),
    ],
)
def test_the_boundary_of_a_form_is_in_its_type(content_type, boundary):
    assert forms.boundary_of(content_type) == boundary
