"""The policy of a call, played through without I/O: scripted outcomes, a clock that only sleeping moves."""

import json

import httpx
import pytest

from darkroom import (
    BadResponse,
    ConnectionFailed,
    GenerateRequest,
    InvalidRequest,
    RateLimited,
    ServerError,
    Timeout,
    Timeouts,
    Unavailable,
)
from darkroom import _calls as calls
from darkroom._connection import Connection
from darkroom._exchange import Failure, Outside, Sleep, exchange
from darkroom._replies import Reply
from darkroom._waiting import until_ready

FOX = calls.generate(GenerateRequest(prompt="a fox"))
REFUSED = Failure("unreached", httpx.ConnectError("Connection refused"))
NO_ANSWER = Failure("timeout", httpx.ReadTimeout("timed out"))
HUNG_UP = Failure("broken", httpx.RemoteProtocolError("Server disconnected"))
READY = Reply(200)
PATIENT = Timeouts()


def problem(status, code="some_code", **headers):
    body = {"title": "No", "status": status, "detail": "it did not work", "code": code}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, headers, json.dumps(body).encode())


class Play:
    """Drive a generator of the policy with a script of outcomes, each of which takes `slow_seconds`."""

    def __init__(self, *script, slow_seconds=0.0, draw=1.0):
        self.script, self.slow_seconds, self.now = list(script), slow_seconds, 1000.0
        self.outside = Outside(now=lambda: self.now, wall_now=lambda: 0.0, draw=lambda: draw)
        self.sent, self.slept, self.reasons = [], [], []

    def run(self, steps):
        outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value
            if isinstance(step, Sleep):
                self.slept.append(step.seconds)
                self.reasons.append(step.because)
                self.now += step.seconds
                outcome = None
            else:
                self.sent.append(step)
                self.now += self.slow_seconds
                outcome = self.script.pop(0)

    def call(self, call, *, max_retries=3, timeouts=PATIENT):
        connection = Connection("http://service", max_retries=max_retries, timeouts=timeouts)
        return self.run(exchange(call, connection, self.outside))

    def wait(self, *, timeout_seconds, on_wait=None):
        steps = until_ready(
            Connection("http://service"), self.outside, timeout_seconds=timeout_seconds, on_wait=on_wait
        )
        return self.run(steps)


@pytest.mark.parametrize("call", [FOX, calls.ready()], ids=str)
def test_a_service_that_was_not_reached_is_tried_again_with_longer_and_longer_waits(call):
    play = Play(REFUSED, REFUSED, REFUSED, REFUSED)
    with pytest.raises(ConnectionFailed, match=r"http://service could not be reached .*refused") as caught:
        play.call(call)
    assert play.slept == [0.5, 1.0, 2.0]
    assert caught.value.__notes__ == ["Tried 4 times in 3.5 s."]
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_waits_are_jittered_over_their_whole_range():
    for draw, slept in ((0.0, 0.0), (0.4, 0.2)):
        play = Play(REFUSED, READY, draw=draw)
        play.call(calls.ready())
        assert play.slept == [slept]


def test_waits_stop_growing():
    play = Play(*[REFUSED] * 7, problem(422))
    with pytest.raises(InvalidRequest):
        play.call(FOX, max_retries=8)
    assert play.slept == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_repeated_when_the_service_says_and_not_earlier(status):
    play = Play(problem(status, retry_after="7"), READY, draw=0.5)
    play.call(calls.ready())
    assert play.slept == [7.25]
    assert "some_code" in play.reasons[0]
    assert "1 of 3" in play.reasons[0]


def test_an_order_for_pictures_is_repeated_after_overload():
    play = Play(problem(503, "overloaded", retry_after="2"), problem(422))
    with pytest.raises(InvalidRequest):
        play.call(FOX)
    assert [step.call for step in play.sent] == [FOX, FOX]


@pytest.mark.parametrize(
    "outcome", [NO_ANSWER, HUNG_UP, problem(502), problem(504), problem(503), problem(500)]
)
def test_an_order_for_pictures_is_not_repeated_when_it_may_be_in_the_making(outcome):
    play = Play(outcome)
    with pytest.raises((Timeout, ConnectionFailed, ServerError)):
        play.call(FOX)
    assert len(play.sent) == 1


@pytest.mark.parametrize("outcome", [NO_ANSWER, HUNG_UP, problem(502), problem(504), problem(503)])
def test_a_question_is_repeated_whatever_happened_to_it(outcome):
    play = Play(outcome, READY)
    play.call(calls.ready())
    assert play.slept == [0.5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500])
def test_an_answer_that_will_not_change_is_not_asked_for_again(status):
    play = Play(problem(status))
    with pytest.raises(Exception, match="it did not work"):
        play.call(calls.info())
    assert play.slept == []


def test_a_quota_that_is_gone_for_an_hour_is_the_callers_to_wait_for():
    play = Play(problem(429, retry_after="3600"))
    with pytest.raises(RateLimited) as caught:
        play.call(FOX)
    assert caught.value.retry_after_seconds == 3600
    assert play.slept == []


def test_no_wait_goes_past_the_deadline():
    play = Play(problem(503, retry_after="20"), problem(503, retry_after="20"), draw=0.0)
    with pytest.raises(Unavailable):
        play.call(FOX, timeouts=Timeouts(total_seconds=30))
    assert play.slept == [20]


def test_every_attempt_gets_only_the_time_that_is_left():
    play = Play(REFUSED, REFUSED, NO_ANSWER, slow_seconds=10, draw=0.0)
    with pytest.raises(Timeout, match="within 23 s"):
        play.call(FOX, timeouts=Timeouts(connect_seconds=5, total_seconds=23))
    assert [step.read_seconds for step in play.sent] == [23, 13, 3]
    assert [step.connect_seconds for step in play.sent] == [5, 5, 3]
    assert {step.give_up_at for step in play.sent} == {1023}


def test_a_question_does_not_get_the_patience_of_a_picture():
    play = Play(READY)
    play.call(calls.ready(), timeouts=Timeouts(total_seconds=600))
    assert play.sent[0].read_seconds == 30


def test_zero_retries_means_one_attempt():
    play = Play(REFUSED)
    with pytest.raises(ConnectionFailed) as caught:
        play.call(FOX, max_retries=0)
    assert not hasattr(caught.value, "__notes__")


def test_a_page_from_a_proxy_is_retried_like_its_status():
    play = Play(
        Reply(503, {"retry-after": "1", "content-type": "text/html"}, b"<html>"), Reply(502, {}, b"<html>")
    )
    with pytest.raises(BadResponse):
        play.call(FOX)
    assert len(play.sent) == 2


def test_waiting_for_readiness_outlasts_a_service_that_starts():
    heard = []
    loading = problem(503, "model_loading", retry_after="3")
    play = Play(REFUSED, loading, Reply(502, {}, b"<html>"), READY)
    play.wait(timeout_seconds=60, on_wait=heard.append)
    assert [type(reason) for reason in heard] == [ConnectionFailed, Unavailable, BadResponse]
    assert play.slept == [1, 3, 1]


def test_waiting_for_readiness_asks_often_enough_and_not_too_often():
    play = Play(problem(503, retry_after="300"), problem(503, retry_after="0"), READY)
    play.wait(timeout_seconds=60)
    assert play.slept == [10, 1]


def test_waiting_for_readiness_ends_with_a_last_look_when_the_time_is_up():
    play = Play(*[problem(503, "model_loading", retry_after="4")] * 4)
    with pytest.raises(Timeout, match="did not become ready within 10 s; at last: it did not work") as caught:
        play.wait(timeout_seconds=10)
    assert play.slept == [4, 4, 2]
    assert isinstance(caught.value.__cause__, Unavailable)


@pytest.mark.parametrize("outcome", [problem(401), problem(404), Reply(404, {}, b"<html>")])
def test_waiting_for_readiness_ends_at_once_where_waiting_does_not_help(outcome):
    play = Play(outcome)
    with pytest.raises(Exception, match="40"):
        play.wait(timeout_seconds=60)
    assert play.slept == []
