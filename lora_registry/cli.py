"""`python -m lora_registry`: the registry from a terminal.

Exit codes: 0 done · 1 the registry said no (not found, refused, in use, damaged) · 2 the command line is wrong ·
3 the storage or the database does not work.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from lora_registry import tables
from lora_registry.base_model import BaseModel
from lora_registry.errors import CatalogUnavailable, InvalidLora, RegistryError, StorageError
from lora_registry.families import sdxl
from lora_registry.records import Lora, LoraVersion
from lora_registry.registry import GRACE_SECONDS, Registry

OK, REFUSED, USAGE, BROKEN = 0, 1, 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not (chosen.data or (chosen.database and chosen.blobs)):
        parser.error("name the registry: --data FOLDER, or --database URL and --blobs URL")
    try:
        with _registry(chosen) as registry:
            return int(chosen.run(registry, chosen))
    except InvalidLora as error:
        _print(tables.reason_lines("refused", error.reasons), sys.stderr)
        return REFUSED
    except (StorageError, CatalogUnavailable) as error:
        _print([f"lora_registry: {error}"], sys.stderr)
        return BROKEN
    except (RegistryError, _Unusable) as error:
        _print([f"lora_registry: {error}"], sys.stderr)
        return REFUSED


class _Unusable(Exception):
    """A file or a folder that the command line names cannot be used."""


def _ls(registry: Registry, chosen: argparse.Namespace) -> int:
    if chosen.name:
        _print(tables.version_rows(_all_versions(registry, chosen.name)))
        return OK
    cursor = ""
    found: list[Lora] = []
    while True:
        page = registry.list(
            name=chosen.search,
            trigger=chosen.trigger,
            tag=chosen.tag,
            hash=chosen.hash,
            limit=1000,
            cursor=cursor,
        )
        found += page.items
        cursor = page.next_cursor
        if not cursor:
            break
    _print(tables.lora_rows(found) if found else ["no LoRA"])
    return OK


def _all_versions(registry: Registry, name: str) -> Iterator[LoraVersion]:
    cursor = ""
    while True:
        page = registry.versions(name, limit=1000, cursor=cursor)
        yield from page.items
        cursor = page.next_cursor
        if not cursor:
            return


def _show(registry: Registry, chosen: argparse.Namespace) -> int:
    version = registry.resolve(chosen.ref)
    _print(tables.version_lines(version))
    pointing = [alias.alias for alias in registry.get(version.name).aliases if alias.number == version.number]
    _print([f"aliases: {', '.join(pointing)}"] if pointing else [])
    return OK


def _publish(registry: Registry, chosen: argparse.Namespace) -> int:
    try:
        file = chosen.file.open("rb")
    except OSError as exc:
        raise _Unusable(f"{chosen.file} cannot be read: {exc.strerror}") from exc
    with file:
        if chosen.dry_run:
            found = registry.inspect(file)
            _print(tables.inspection_lines(found))
            return OK if found.accepted else REFUSED
        version = registry.publish(
            chosen.name,
            file,
            number=chosen.number,
            alias=chosen.alias,
            triggers=chosen.trigger,
            tags=chosen.tag,
            description=chosen.description,
        )
    _print([f"{version.ref}  {version.digest}  {'existing' if version.existing else 'published'}"])
    _print(tables.reason_lines("warning", version.warnings), sys.stderr)
    return OK


def _alias(registry: Registry, chosen: argparse.Namespace) -> int:
    if chosen.number == 0:
        registry.delete_alias(chosen.name, chosen.alias)
        _print([f"{chosen.name}:{chosen.alias} deleted"])
        return OK
    alias = registry.set_alias(chosen.name, chosen.alias, chosen.number, if_match=chosen.if_match)
    _print([f"{alias.ref} -> {alias.name}@{alias.number}  {alias.digest}  etag {alias.etag}"])
    return OK


def _rm(registry: Registry, chosen: argparse.Namespace) -> int:
    version = registry.resolve(chosen.ref)
    registry.delete(version.name, version.number)
    _print([f"{version.ref} deleted; `gc` removes its bytes after the grace period"])
    return OK


def _export(registry: Registry, chosen: argparse.Namespace) -> int:
    export = registry.export(chosen.ref, chosen.form)
    part = chosen.file.with_name(chosen.file.name + ".part")
    try:
        try:
            with part.open("xb") as file:
                for piece in export.pieces:
                    file.write(piece)
            part.replace(chosen.file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise _Unusable(f"{chosen.file} cannot be written: {exc.strerror}") from exc
    _print([f"{chosen.file}  {tables.size(export.size_bytes)}"])
    return OK


def _gc(registry: Registry, chosen: argparse.Namespace) -> int:
    report = registry.gc(grace_seconds=chosen.grace_seconds)
    _print(
        [
            f"removed {report.blobs} blobs ({tables.size(report.size_bytes)}) and {report.temp_files} temporary files"
        ]
    )
    return OK


def _verify(registry: Registry, _chosen: argparse.Namespace) -> int:
    report = registry.verify()
    _print(
        tables.table(
            ("DIGEST", "FACT", "VERSIONS"), ((d.digest, d.fact, ", ".join(d.refs)) for d in report.damaged)
        )
    )
    _print(
        [f"{report.checked} blobs ({tables.size(report.size_bytes)}) hashed, {len(report.damaged)} damaged"]
    )
    return REFUSED if report.damaged else OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_registry", description="LoRA files by name.")
    parser.add_argument(
        "--data", type=Path, default=_path_from("LORA_REGISTRY_DATA"), help="the registry's folder"
    )
    parser.add_argument(
        "--database",
        default=os.environ.get("LORA_REGISTRY_DATABASE", ""),
        help="postgresql://… or sqlite:///FILE",
    )
    parser.add_argument(
        "--blobs", default=os.environ.get("LORA_REGISTRY_BLOBS", ""), help="s3://bucket/prefix or a folder"
    )
    parser.add_argument(
        "--base",
        default="sdxl",
        help="the model that LoRAs are for: sdxl, or a folder with its diffusers configs (%(default)s)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("ls", help="list LoRAs, or the versions of one")
    command.add_argument("name", nargs="?", default="")
    command.add_argument("--search", default="", metavar="TEXT", help="a part of the name")
    command.add_argument("--trigger", default="", help="a part of a trigger word")
    command.add_argument("--tag", default="", help="a part of a tag")
    command.add_argument("--hash", default="", help="sha256, AutoV2, AutoV3, or the beginning of one")
    command.set_defaults(run=_ls)

    command = commands.add_parser("show", help="everything about one version")
    command.add_argument("ref", help="name, name@3, name:alias or sha256:…")
    command.set_defaults(run=_show)

    command = commands.add_parser("publish", help="take a safetensors file in")
    command.add_argument("name")
    command.add_argument("file", type=Path)
    command.add_argument("--number", type=int, default=0, help="this version number instead of the next")
    command.add_argument("--alias", help="move this alias to it")
    command.add_argument("--trigger", action="append", default=[], help="a trigger word; may be repeated")
    command.add_argument("--tag", action="append", default=[], help="a tag; may be repeated")
    command.add_argument("--description", default="")
    command.add_argument("--dry-run", action="store_true", help="only say what intake thinks of the file")
    command.set_defaults(run=_publish)

    command = commands.add_parser("alias", help="point an alias to a version; to version 0 to delete it")
    command.add_argument("name")
    command.add_argument("alias")
    command.add_argument("number", type=int)
    command.add_argument("--if-match", metavar="ETAG", help='only if it has this etag; "" only if it is new')
    command.set_defaults(run=_alias)

    command = commands.add_parser("rm", help="delete a version that no alias points to")
    command.add_argument("ref")
    command.set_defaults(run=_rm)

    command = commands.add_parser("export", help="write a published file")
    command.add_argument("ref")
    command.add_argument("file", type=Path)
    command.add_argument("--form", choices=("original", "diffusers", "kohya"), default="original")
    command.set_defaults(run=_export)

    command = commands.add_parser("verify", help="hash every blob anew")
    command.set_defaults(run=_verify)

    command = commands.add_parser("gc", help="remove what nothing needs any more")
    command.add_argument("--grace-seconds", type=float, default=GRACE_SECONDS, help="(%(default)s)")
    command.set_defaults(run=_gc)
    return parser


def _registry(chosen: argparse.Namespace) -> Registry:
    return Registry.connect(
        [_base(chosen.base)], data=chosen.data, database=chosen.database, blobs=chosen.blobs
    )


def _base(text: str) -> BaseModel:
    if text == "sdxl":
        return sdxl()
    folder = Path(text)
    try:
        return BaseModel.from_folder(folder.resolve().name, folder)
    except (OSError, ValueError, KeyError) as exc:
        raise _Unusable(f"--base {text} is neither 'sdxl' nor a folder with unet/config.json in it") from exc


def _path_from(variable: str) -> Path | None:
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def _print(lines: Iterable[str], to: TextIO | None = None) -> None:
    for line in lines:
        (to or sys.stdout).write(line + "\n")
