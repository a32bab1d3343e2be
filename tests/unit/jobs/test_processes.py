"""A process is told from others, and from later ones with its number."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from service.jobs.processes import Holder


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_holder_can_be_written_down_and_read_again():
    here = Holder.this_process()
    assert Holder.parse(str(here)) == here
    assert here.pid == os.getpid()
    assert len(str(here)) <= 200


@pytest.mark.parametrize("text", ["", "x", "a b c", "a -1 5", "a 99999999999999999999999 x"])
def test_what_is_no_holder_is_nobody_that_is_known(text):
    assert Holder.parse(text).life() == "unknown"


def test_a_process_lives_until_it_is_dead_even_before_its_parent_has_noticed(child):
    holder = Holder.of(child.pid)
    assert holder.life() == "alive"
    holder.send(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie by now
    assert holder.life() == "dead"
    child.wait()
    assert holder.life() == "dead"


def test_a_later_process_with_the_same_number_is_another(child):
    former = replace(Holder.of(child.pid), started="1")
    assert former.life() == "dead"
    former.send(signal.SIGKILL)
    assert child.poll() is None


def test_of_a_process_elsewhere_nothing_is_known_and_it_is_not_touched(child):
    elsewhere = replace(Holder.of(child.pid), machine="elsewhere")
    assert elsewhere.life() == "unknown"
    elsewhere.send(signal.SIGKILL)
    assert child.poll() is None


def test_a_stopped_process_lives(child):
    holder = Holder.of(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert holder.life() == "alive"
    os.kill(child.pid, signal.SIGCONT)
