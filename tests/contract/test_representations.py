"""JSON with everything, or the bytes of one image, as `Accept` has it."""

import base64

import pytest

from in_process import GOOD, pixels
from service.images import read_receipt


def post(service, accept, **changes):
    headers = {} if accept is None else {"Accept": accept}
    return service.http.post("/v1/generate", json=GOOD | changes, headers=headers)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/webp", "image/webp"),
        ("image/*", "image/png"),
        ("image/png;q=0.2, image/webp;q=0.9", "image/webp"),
        ("text/html, image/avif, image/webp, */*;q=0.8", "image/webp"),
    ],
)
def test_an_image_comes_as_its_file(service, reference, accept, media_type):
    reply = post(service, accept)
    assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
    assert reply.headers["vary"] == "Accept"
    assert reply.headers["x-darkroom-seed"] == str(GOOD["seed"]) == str(read_receipt(reply.content).seed)
    assert reply.headers["x-darkroom-model"] == "pocket"
    assert "base;dur=" in reply.headers["server-timing"]
    difference = abs(pixels(reply.content) - pixels(reference)).mean()
    assert difference == 0 if media_type == "image/png" else difference < 12


def test_file_and_json_hold_the_same_bytes(service):
    json_reply, file_reply = post(service, "application/json"), post(service, "image/png")
    (image,) = json_reply.json()["images"]
    assert base64.b64decode(image["b64"]) == file_reply.content


@pytest.mark.parametrize("accept", [None, "", "*/*", "application/json", "application/*, image/png;q=0.9"])
def test_json_is_what_comes_unless_an_image_is_preferred(service, accept):
    assert post(service, accept).headers["content-type"] == "application/json"


def test_the_format_of_the_request_holds_where_accept_leaves_it_open(service):
    reply = post(service, "image/*", output={"format": "jpeg"})
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.content[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(
    ("accept", "changes"),
    [
        ("*/*;q=0", {}),
        ("text/html", {}),
        ("image/png", {"num_images": 2}),
        ("image/png", {"output": {"format": "webp"}}),
    ],
)
def test_what_cannot_be_given_is_not_begun(service, accept, changes):
    before = service.metric("images_total")
    reply = post(service, accept, **changes)
    assert (reply.status_code, reply.json()["code"]) == (406, "not_acceptable")
    assert service.metric("images_total") == before


def test_a_file_without_metadata_is_bare_pixels(service, reference):
    reply = post(service, "image/png", output={"metadata": "none"})
    assert read_receipt(reply.content) is None
    assert (pixels(reply.content) == pixels(reference)).all()
    assert len(reply.content) < len(reference)


def test_paths_with_a_slash_too_many_are_not_found_and_lead_nowhere(service):
    for path in ("/v1/generate/", "/v1/info/", "/readyz/"):
        reply = service.http.get(path, headers={"Host": "elsewhere.test"}, follow_redirects=False)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
