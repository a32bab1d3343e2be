"""Logs: one event per fact, as readable lines or as JSON, with hostile text made harmless.

Everything in the process goes through one handler, libraries included, so that a line always has the same
shape and carries the `request_id` that the edge has bound.
"""

import logging
import os
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LOUD_LIBRARIES = (
    "alembic",
    "bentoml.access",  # like uvicorn.access: our own `request_answered` again, with the caller's raw path
    "compel",
    "diffusers",
    "filelock",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "PIL",
    "transformers",
    "urllib3",
    "uvicorn.access",
)
MAX_VALUE_CHARACTERS = 500
MAX_TRACEBACK_CHARACTERS = 16_000
MAX_KEYS = 32


def configure(*, log_format: Literal["console", "json"], level: str) -> None:
    """Send every log of this process to stdout in one form. Safe to call again."""
    structlog.configure(
        processors=[*_facts(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_facts(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                tame,
                _renderer(log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("bentoml", "uvicorn", "uvicorn.error", "circus"):
        library = logging.getLogger(name)
        library.handlers, library.propagate = [], True
    # Read when these libraries are first imported: no advice to developers, no bars where nobody watches.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    for name in LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _facts() -> list[Processor]:
    """What every event carries: the bound ids, its level, its logger and its time."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _renderer(log_format: Literal["console", "json"]) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer()
    # Tracebacks are text by then: pretty ones would print the locals, and prompts with them.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def tame(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Bound every value and escape what could forge a line or steer a terminal."""
    tamed: EventDict = {}
    for key, value in list(event.items())[:MAX_KEYS]:
        if key == "exception":
            tamed[key] = _printable(str(value)[-MAX_TRACEBACK_CHARACTERS:], keep="\n")
        elif value is None or isinstance(value, (bool, int, float)):
            tamed[key] = value
        else:
            tamed[str(key)[:64]] = _printable(_bounded(str(value)))
    return tamed


def _bounded(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARACTERS:
        return text
    return f"{text[:MAX_VALUE_CHARACTERS]}… ({len(text)} characters)"


def _printable(text: str, keep: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
