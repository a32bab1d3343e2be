"""`python -m service`: serve, and what an operator needs around it."""

import argparse
import hashlib
import json
import os
import secrets
import sys
import textwrap
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

import pydantic
from pydantic_settings import SettingsError

import service
from service.api.auth import check_bind
from service.errors import InvalidSettings
from service.production import check_no_faults
from service.settings import ApiKey, Scope, Settings

GRACE_SECONDS = 5
"""For answers that are still being sent once the work in flight is done."""
OPENAPI_FILE = Path(__file__).parent / "api" / "openapi.json"


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (InvalidSettings, pydantic.ValidationError, SettingsError) as error:
        sys.exit(f"darkroom: {_readable(error)}")


def serve(chosen: argparse.Namespace) -> None:
    """Become `bentoml serve`, once the settings are known to be good."""
    host = "127.0.0.1" if chosen.host == "localhost" else chosen.host  # BentoML takes addresses only
    check_no_faults()
    check_bind(Settings(), host)
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    command = [sys.executable, "-m", "bentoml", "serve", "service.bento:Darkroom"]
    command += ["--working-dir", str(Path(service.__file__).parent.parent)]
    command += ["--host", host, "--port", str(chosen.port)]
    command += ["--timeout-graceful-shutdown", str(GRACE_SECONDS)]
    os.execv(sys.executable, command)


def openapi(_chosen: argparse.Namespace) -> None:
    """Write the OpenAPI document into the package; a test holds the two together."""
    OPENAPI_FILE.write_text(openapi_text(), encoding="utf-8")
    _say(str(OPENAPI_FILE))


def openapi_text() -> str:
    """The OpenAPI document as it is checked in."""
    from service.api.app import create_app

    document = create_app(_no_components).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def settings(_chosen: argparse.Namespace) -> None:
    """List every setting with its default and what it does."""
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else _shown(field.default)
        _say(f"DARKROOM_{name.upper()}={default}  ({_kind(field.annotation)})")
        if field.description:
            text = " ".join(field.description.split())
            _say(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    "))


def key(chosen: argparse.Namespace) -> None:
    """Make a key; only its hash is for the service."""
    secret = f"dk_{secrets.token_urlsafe(32)}"
    entry = ApiKey.model_validate(
        {
            "name": chosen.name,
            "sha256": hashlib.sha256(secret.encode()).hexdigest(),
            "scopes": [scope for scope in chosen.scopes.split(",") if scope],
        }
    )
    _say(f"The key, shown only now:\n{secret}\n")
    _say("Its entry for DARKROOM_API_KEYS or the file DARKROOM_API_KEYS_FILE (a JSON list of such):")
    _say(json.dumps({"name": entry.name, "sha256": entry.sha256, "scopes": sorted(entry.scopes)}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="Darkroom, an SDXL microservice.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="serve; settings are DARKROOM_* variables")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    command.add_argument("--port", type=int, default=3000, help="(%(default)s)")
    command.set_defaults(run=serve)

    command = commands.add_parser("openapi", help="write service/api/openapi.json")
    command.set_defaults(run=openapi)

    command = commands.add_parser("settings", help="list the settings, their defaults and what they do")
    command.set_defaults(run=settings)

    command = commands.add_parser("key", help="make an API key")
    command.add_argument("name", help="who will use it")
    command.add_argument(
        "--scopes", default="generate", help=f"comma-separated, of: {', '.join(get_args(Scope))}"
    )
    command.set_defaults(run=key)
    return parser


def _readable(error: Exception) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    prefix = "DARKROOM_" if error.title == "Settings" else ""
    lines = []
    for found in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in found["loc"])
        lines.append(f"{prefix}{where.upper() if prefix else where}: {found['msg']}")
    return "; ".join(lines)


def _shown(default: object) -> str:
    return json.dumps(default) if isinstance(default, (bool, tuple)) else str(default)


def _kind(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    return getattr(annotation, "__name__", "") if isinstance(annotation, type) else str(annotation)


def _no_components() -> NoReturn:
    raise AssertionError("a description needs no components")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
