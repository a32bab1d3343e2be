"""A server and a trainer share a device, and neither waits for one that is dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from processes import ROOT
from service.jobs.sharing import Turnstile


@pytest.fixture
def sides(data):
    """A server's turnstile and a trainer's."""
    server, trainer = Turnstile(data / "device"), Turnstile(data / "device")
    yield server, trainer
    server.close()
    trainer.close()


@contextmanager
def process(folder, code):
    """A process that has a turnstile `t`, runs `code`, says so, and then does nothing."""
    script = (
        "import sys, pathlib; from service.jobs.sharing import Turnstile\n"
        f"t = Turnstile(pathlib.Path({str(folder)!r}))\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def never():
    return None


def test_a_trainer_does_not_wait_where_nobody_is_busy(sides):
    _, trainer = sides
    assert trainer.wait(never) == 0.0


def test_asking_costs_microseconds(sides):
    _, trainer = sides
    started = time.perf_counter()
    for _ in range(1000):
        trainer.wait(never)
    assert time.perf_counter() - started < 0.1  # 2 µs each where the machine is idle


def test_a_trainer_waits_until_the_last_request_is_done(sides):
    server, trainer = sides
    waited = []
    with server.serving(), server.serving():
        thread = threading.Thread(target=lambda: waited.append(trainer.wait(never, poll_seconds=0.001)))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(5)
    assert waited[0] > 0.04


def test_a_flag_is_set_by_a_number_too(sides):
    server, trainer = sides
    for count, is_busy in [(3, True), (1, True), (0, False), (0, False), (2, True)]:
        server.set_busy(count)
        assert bool(trainer.wait(lambda: "leave")) is is_busy


def test_a_trainer_that_is_asked_to_stop_stops_waiting(sides):
    server, trainer = sides
    with server.serving():
        assert trainer.wait(lambda: "cancelled") > 0


def test_one_busy_server_of_two_is_enough(sides, data):
    server, trainer = sides
    other = Turnstile(data / "device")
    with server.serving():
        with other.serving():
            pass
        assert trainer.wait(lambda: True) > 0
    assert trainer.wait(never) == 0.0
    other.close()


def test_a_server_killed_while_it_is_busy_is_not_waited_for(sides, data):
    _, trainer = sides
    with process(data / "device", "t.set_busy(1)") as server:
        assert trainer.wait(lambda: True) > 0
        threading.Timer(0.05, server.kill).start()
        assert trainer.wait(never, poll_seconds=0.001) > 0


def test_a_stopped_trainer_does_not_stand_in_a_servers_way(sides, data):
    server, trainer = sides
    code = "import threading\nthreading.Thread(target=lambda: [t.wait(int) for _ in iter(int, 1)], daemon=True).start()"
    with process(data / "device", code) as busy_asking:
        for _ in range(20):
            os.kill(busy_asking.pid, signal.SIGSTOP)
            with server.serving():  # returns, wherever the other was stopped
                assert trainer.wait(lambda: True) > 0
            os.kill(busy_asking.pid, signal.SIGCONT)


def test_the_device_goes_to_the_trainer_and_back(sides):
    server, trainer = sides
    assert server.take_back()
    assert not server.asked()
    order = []

    def train():
        with trainer.device(never, poll_seconds=0.001) as has_device:
            order.append("training" if has_device else "nothing")
            done.wait(5)
            order.append("trained")

    done = threading.Event()
    thread = threading.Thread(target=train)
    thread.start()
    while not server.asked():
        time.sleep(0.001)
    assert order == []  # the server has not given it away yet
    order.append("handed over")
    server.hand_over()
    assert not server.take_back()  # it is promised, or taken
    while "training" not in order:
        time.sleep(0.001)
    assert not server.take_back()
    done.set()
    thread.join(5)
    assert server.take_back()
    assert order == ["handed over", "training", "trained"]


def test_a_trainer_has_the_device_at_once_where_there_is_no_server(sides):
    _, trainer = sides
    with trainer.device(never) as has_device:
        assert has_device


def test_a_trainer_that_is_cancelled_while_it_waits_leaves_the_device_alone(sides):
    server, trainer = sides
    server.take_back()
    with trainer.device(lambda: "cancelled") as has_device:
        assert not has_device
    assert not server.asked()
    assert server.take_back()


def test_a_server_gets_the_device_back_from_a_trainer_that_was_killed(sides, data):
    server, _ = sides
    with process(data / "device", "d = t.device(int)\nassert d.__enter__()") as trainer:
        assert server.asked()
        assert not server.take_back()
        trainer.kill()
        trainer.wait()
        assert not server.asked()
        assert server.take_back()


def test_a_trainer_gets_the_device_of_a_server_that_was_killed(sides, data):
    _, trainer = sides
    with process(data / "device", "assert t.take_back()") as server:
        threading.Timer(0.05, server.kill).start()
        with trainer.device(never, poll_seconds=0.001) as has_device:
            assert has_device
