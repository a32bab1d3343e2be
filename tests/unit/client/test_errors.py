"""Requests that are refused before anything is sent, and what exceptions keep."""

import pickle

import httpx
import pytest
from pydantic import BaseModel, model_validator

import darkroom
from darkroom import APIError, BadResponse, DarkroomError, InvalidRequest, Problem, Unavailable
from darkroom._errors import refused_before_sending


def test_a_request_that_cannot_be_right_is_refused_before_anything_is_sent(fake, client):
    with pytest.raises(InvalidRequest) as caught:
        client.generate("a fox", width=1001, num_images=9)
    assert [error.pointer for error in caught.value.errors] == ["/width", "/num_images"]
    assert caught.value.status == 422
    assert caught.value.code == "invalid_request"
    assert str(caught.value) == (
        "/width: Input should be a multiple of 8 (and 1 more) (422 invalid_request)\n"
        "  /num_images: Input should be less than or equal to 8"
    )
    assert fake.requests == []


def test_a_fault_of_the_request_as_a_whole_is_said_in_our_own_words():
    class Order(BaseModel):
        @model_validator(mode="after")
        def _always_wrong(self):
            raise ValueError("that does not fit together")

    with pytest.raises(InvalidRequest) as caught, refused_before_sending():
        Order()
    (error,) = caught.value.errors
    assert (error.pointer, error.message) == ("", "that does not fit together")


def test_a_field_name_with_a_slash_is_escaped_in_its_pointer():
    class Order(BaseModel):
        weights: dict[str, float]

    with pytest.raises(InvalidRequest) as caught, refused_before_sending():
        Order.model_validate({"weights": {"a/b~c": "heavy"}})
    assert caught.value.errors[0].pointer == "/weights/a~1b~0c"


def test_the_place_of_a_fault_inside_a_pair_is_part_of_the_pointer(client):
    with pytest.raises(InvalidRequest) as caught:
        client.generate("a fox", original_size=(64, -1))
    assert [error.pointer for error in caught.value.errors] == ["/original_size/1"]


def test_the_client_and_the_service_find_the_same_faults(fake, client):
    """A caller cannot tell which of the two refused."""
    body = {"prompt": "", "num_inference_steps": 0}
    http = httpx.Client(transport=httpx.MockTransport(fake._answer))
    served = Problem.model_validate_json(http.post("http://fake/v1/generate", json=body).content)
    with pytest.raises(InvalidRequest) as caught:
        client.generate(**body)
    assert caught.value.problem == served


@pytest.mark.parametrize(
    "error",
    [
        DarkroomError("gone"),
        BadResponse(502, "no answer", "<html>"),
        Unavailable(
            Problem(title="Busy", status=503, detail="busy", code="overloaded", request_id="r1"), 503, 4.0
        ),
    ],
)
def test_errors_travel_between_processes_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_exception_is_public_and_a_darkroom_error():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    for kind in below(DarkroomError):
        assert getattr(darkroom, kind.__name__) is kind


def test_a_fault_of_the_service_is_one_class_to_catch():
    problem = Problem(title="Late", status=504, detail="too late", code="deadline_exceeded")
    assert issubclass(darkroom.DeadlineExceeded, darkroom.ServerError)
    assert issubclass(darkroom.Unavailable, darkroom.ServerError)
    assert isinstance(darkroom.DeadlineExceeded(problem, 504), APIError)
