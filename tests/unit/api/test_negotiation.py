"""Which representation a caller gets."""

import pytest

from darkroom.types import GenerateRequest
from service.api.negotiation import representation, with_format
from service.api.refusals import NotAcceptable

ANY = GenerateRequest(prompt="a fox")
JPEG = GenerateRequest(prompt="a fox", output={"format": "jpeg"})
FOUR = GenerateRequest(prompt="a fox", num_images=4)


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/WEBP", "image/webp"),
        ("image/jpeg;q=0.2, image/webp;q=0.9", "image/webp"),
        ("image/*", "image/png"),
        ("image/*;q=0.5, application/json;q=0.4", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("image/png, */*;q=0.8", "image/png"),
        ("application/json, image/png", "application/json"),
        ("text/html, image/webp, */*;q=0.1", "image/webp"),
        ("image/png;q=0, image/*;q=0.3", "image/jpeg"),
        ("*/*, application/json;q=0", "image/png"),
        ("image/png;q=nan, image/jpeg;q=0.1", "image/jpeg"),
        ("image/png ; q = 0.9 , image/webp;q=1.0", "image/webp"),
        ("garbage, image/webp", "image/webp"),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, application/json;q=0.9", "text/event-stream"),
        ("text/event-stream, */*", "text/event-stream"),
        ("text/event-stream;q=0.5, */*", "application/json"),
        ("text/*", "text/event-stream"),
    ],
)
def test_the_best_liked_representation_is_given(accept, given):
    assert representation(ANY, accept) == given


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "garbage", ",", "video/*"])
def test_what_cannot_be_given_is_refused(accept):
    with pytest.raises(NotAcceptable, match="accept one of"):
        representation(ANY, accept)


def test_a_format_that_was_ordered_holds_for_any_image():
    assert representation(JPEG, "image/*") == "image/jpeg"
    assert representation(JPEG, "image/png, image/jpeg;q=0.1") == "image/jpeg"


def test_a_format_that_was_ordered_and_one_that_is_accepted_may_conflict():
    with pytest.raises(NotAcceptable, match=r"`output\.format` is 'jpeg'"):
        representation(JPEG, "image/png")


def test_several_images_fit_only_json():
    assert representation(FOUR, "image/png, application/json;q=0.1") == "application/json"
    with pytest.raises(NotAcceptable, match="4 images do not fit"):
        representation(FOUR, "image/png")


def test_a_stream_takes_any_number_and_any_format():
    assert representation(FOUR, "text/event-stream") == "text/event-stream"
    assert representation(JPEG, "text/event-stream") == "text/event-stream"
    assert with_format(JPEG, "text/event-stream") is JPEG


def test_the_negotiated_format_is_the_one_that_is_made():
    assert with_format(ANY, "image/webp").output.format == "webp"
    assert with_format(ANY, "application/json") is ANY
