"""Log lines that hold whatever callers send."""

import json
import logging

import pytest
import structlog

from service import logs

HOSTILE = "a\nlevel=error forged\r\x1b[31mred\x00\u2028" + "x" * 10_000


@pytest.fixture
def configured():
    """Logging as it was, afterwards."""
    root = logging.getLogger()
    before = root.handlers, root.level
    yield logs.configure
    root.handlers, root.level = before
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_hostile_text_stays_on_one_bounded_line(configured, capsys, log_format):
    configured(log_format=log_format, level="info")
    structlog.get_logger().info("request_answered", prompt=HOSTILE)
    logging.getLogger("some.library").warning("%s", HOSTILE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(len(line) < 1_500 for line in lines)
    assert not any("\x1b[31m" in line or "\x00" in line for line in lines)


def test_json_lines_carry_the_bound_ids_and_the_traceback(configured, capsys):
    configured(log_format="json", level="info")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        try:
            raise ValueError("why")
        except ValueError:
            structlog.get_logger("edge").exception("request_failed")
        logging.getLogger("some.library").warning("said something")
    ours, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (ours["event"], ours["request_id"], ours["level"]) == ("request_failed", "r-1", "error")
    assert "ValueError: why" in ours["exception"]
    assert (theirs["event"], theirs["request_id"], theirs["logger"]) == (
        "said something",
        "r-1",
        "some.library",
    )


def test_the_level_is_the_configured_one_and_chatty_libraries_are_quiet(configured, capsys):
    configured(log_format="json", level="info")
    structlog.get_logger().debug("a_detail")
    logging.getLogger("httpx").info("GET http://...")
    assert capsys.readouterr().out == ""


def test_an_event_with_endless_keys_is_cut():
    event = logs.tame(None, "info", {f"key{n}": n for n in range(1000)})
    assert len(event) == logs.MAX_KEYS
