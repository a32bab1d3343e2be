"""How the server shares its device with train jobs: what a request and what a trainer see of each policy."""

import threading
from contextlib import closing

import pytest

from service.errors import DeviceLent, EngineStopped
from service.jobs.sharing import Turnstile
from service.sharing import Sharing

SECONDS = 30.0
NEVER = 3600.0


def no_engine():
    raise EngineStopped("none here")


@pytest.fixture
def shared(tmp_path):
    """Makes the server's side; its own looks are so far apart that the test has to look."""
    made = []

    def share(policy, folder=tmp_path / "sharing"):
        made.append(sharing := Sharing(policy, folder, no_engine, look_seconds=NEVER))
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
