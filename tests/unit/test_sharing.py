"""How the server shares its device with train jobs: what a request and what a trainer see of each policy."""

import threading
from contextlib import closing

import pytest
import torch

from service.errors import DeviceLent, EngineStopped
from service.jobs.sharing import Turnstile
from service.sharing import Sharing

SECONDS = 30.0
NEVER = 3600.0


def no_engine():
    raise EngineStopped("none here")


class Lender:
    """An engine as far as its device is lent: `answers` are what it says when asked to lend and to take back."""

    def __init__(self, *answers):
        self.answers, self.heard = list(answers), []

    def lend(self):
        return self._answer("lend")

    def take_back(self):
        return self._answer("take back")

    def _answer(self, asked):
        self.heard.append(asked)
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def shared(tmp_path):
    """Makes the server's side; its own looks are so far apart that the test has to look."""
    made = []

    def share(policy, folder=tmp_path / "sharing", engine=no_engine):
        made.append(sharing := Sharing(policy, folder, engine, look_seconds=NEVER))
        sharing.start()
        return sharing

    yield share
    for sharing in made:
        sharing.close()


@pytest.fixture
def trainer(tmp_path):
    with closing(Turnstile(tmp_path / "sharing")) as trainer:
        yield trainer


class Job:
    """A trainer that wants the device, in a thread, until it is told to be done."""

    def __init__(self, trainer):
        self.has_device, self.done, self._trainer = threading.Event(), threading.Event(), trainer
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self):
        with self._trainer.device(lambda: False, poll_seconds=0.01):
            self.has_device.set()
            self.done.wait(SECONDS)

    def end(self):
        self.done.set()
        self._thread.join(SECONDS)


def until(look, true):
    for _ in range(3000):
        look()
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def is_refused(sharing):
    try:
        with sharing.serving():
            return False
    except DeviceLent:
        return True


def test_with_share_a_trainer_waits_as_long_as_any_request_is_served(shared, trainer):
    sharing = shared("share")
    assert trainer.wait(lambda: True) == 0.0
    with sharing.serving():
        with sharing.serving():
            assert trainer.wait(lambda: True) > 0.0
        assert trainer.wait(lambda: True) > 0.0
    assert trainer.wait(lambda: True) == 0.0


def test_with_pause_what_was_accepted_is_finished_before_a_job_has_the_device(shared, trainer):
    sharing = shared("pause")
    with sharing.serving():
        job = Job(trainer)
        until(sharing.look, lambda: is_refused(sharing))
        sharing.look()
        assert not job.has_device.wait(0.1)
    until(sharing.look, job.has_device.is_set)
    assert is_refused(sharing)
    job.end()
    until(sharing.look, lambda: not is_refused(sharing))


def test_a_job_has_the_device_once_its_memory_was_moved_out_of_the_way(shared, trainer):
    lender = Lender(False, False, True)
    sharing = shared("pause", engine=lambda: lender)
    job = Job(trainer)
    until(lambda: None, sharing._turnstile.asked)
    for _ in range(2):
        sharing.look()
        assert not job.has_device.wait(0.1)
        assert is_refused(sharing)
    sharing.look()
    assert job.has_device.wait(SECONDS)
    assert lender.heard == ["lend"] * 3
    job.end()
    until(sharing.look, lambda: not is_refused(sharing))
    assert lender.heard[-1] == "take back"


@pytest.mark.parametrize("reason", [RuntimeError("no room"), MemoryError()])
def test_a_host_without_room_lets_the_job_have_what_is_free(shared, trainer, reason):
    lender = Lender(reason)
    sharing = shared("pause", engine=lambda: lender)
    job = Job(trainer)
    until(sharing.look, job.has_device.is_set)
    job.end()
    until(sharing.look, lambda: not is_refused(sharing))


def test_a_device_that_is_still_full_after_a_job_is_tried_again(shared, trainer):
    lender = Lender(True)
    sharing = shared("pause", engine=lambda: lender)
    job = Job(trainer)
    until(sharing.look, job.has_device.is_set)
    job.end()
    lender.answers = [torch.OutOfMemoryError("CUDA out of memory")] * 2
    for _ in range(2):
        sharing.look()
        assert is_refused(sharing)
    sharing.look()
    assert not is_refused(sharing)


def test_a_job_that_gives_up_waiting_leaves_the_device_to_the_server(shared, trainer):
    sharing = shared("pause")
    given_up, found = threading.Event(), []

    def ask():
        with trainer.device(given_up.is_set, poll_seconds=0.01) as has_device:
            found.append(has_device)

    with sharing.serving():
        asking = threading.Thread(target=ask)
        asking.start()
        until(sharing.look, lambda: is_refused(sharing))
        given_up.set()
        asking.join(SECONDS)
    assert found == [False]
    until(sharing.look, lambda: not is_refused(sharing))


def test_with_separate_nobody_waits_and_nothing_is_made(shared, tmp_path):
    sharing = shared("separate")
    with sharing.serving():
        assert not (tmp_path / "sharing").exists()


@pytest.mark.parametrize("policy", ["share", "pause"])
def test_a_folder_that_cannot_be_used_does_not_end_the_serving(shared, tmp_path, policy):
    (tmp_path / "file").write_text("in the way")
    sharing = shared(policy, tmp_path / "file" / "sharing")
    with sharing.serving():
        pass
