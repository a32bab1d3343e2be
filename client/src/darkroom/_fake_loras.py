"""The registry of `FakeDarkroom`: names, versions and aliases in memory. What a file is, it hardly looks at."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import unquote

from pydantic import ValidationError

from darkroom._errors import refusal_of
from darkroom.types import (
    BlendRequest,
    FieldError,
    Lora,
    LoraAlias,
    LoraAliasMove,
    LoraInspection,
    LoraLineage,
    LoraPage,
    LoraReason,
    LoraServed,
    LoraSource,
    LoraVersion,
    LoraVersionPage,
    Problem,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_WHEN = datetime(2024, 1, 1, tzinfo=UTC)
_PREFIX_BYTES = 9
"""Eight bytes of length and the brace that begins a safetensors header."""

Query = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """A request, as far as the registry looks at it. Header names are lower case."""

    method: str
    path: str
    query: Query
    headers: Mapping[str, str]
    body: bytes
    lineage: LoraLineage | None = None
    """Of a file that was made here."""


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The request cannot be carried out; the problem says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass
class _Alias:
    version: int
    etag: int


@dataclass
class _Kept:
    versions: dict[int, LoraVersion] = field(default_factory=dict)
    aliases: dict[str, _Alias] = field(default_factory=dict)
    next_version: int = 1


class FakeLoras:
    """All LoRAs of one fake."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._files: dict[str, bytes] = {}
        self._moves = 0

    def answer(self, asked: Asked) -> Answer:
        """What the service would say.

        Raises:
            Refused
        """
        parts = [unquote(part) for part in asked.path.removeprefix("/v1/").split("/")]
        match asked.method, parts:
            case "GET", ["loras"]:
                names = sorted(name for name in self._kept if self._fits(name, asked.query))
                return _answer(LoraPage(items=[self._lora(name) for name in names]))
            case "GET", ["lora-versions", ref]:
                return _answer(self._resolved(ref))
            case "GET", ["loras", name]:
                return _answer(self._lora(name))
            case "GET", ["loras", name, "versions"]:
                return _answer(LoraVersionPage(items=_highest_first(self._lookup(name))))
            case "POST", ["loras", name, "versions"]:
                return self._publish(name, asked)
            case "GET", ["loras", name, "versions", number]:
                return _answer(self._version(name, number))
            case "GET", ["loras", name, "versions", number, "file"]:
                version = self._version(name, number)
                return Answer(200, self._files[version.digest], {"ETag": f'"{version.digest}"'})
            case "POST", ["loras", name, "blends"]:
                return self._blend(name, asked)
            case "PUT", ["loras", name, "versions", number, "pin"]:
                pinned = self._version(name, number)
                return _answer(LoraServed(ref=pinned.ref, digest=pinned.digest, tier="disk"))
            case "DELETE", ["loras", name, "versions", number, "pin"]:
                self._version(name, number)
                return Answer(204)
            case "DELETE", ["loras", name, "versions", number]:
                self._delete(self._version(name, number))
                return Answer(204)
            case "GET", ["loras", name, "aliases", alias]:
                return _answer(self._alias(name, alias))
            case "PUT", ["loras", name, "aliases", alias]:
                return self._set_alias(name, alias, asked)
            case "DELETE", ["loras", name, "aliases", alias]:
                self._expect(name, alias, asked.headers)
                self._alias(name, alias)
                del self._kept[name].aliases[alias]
                return Answer(204)
        raise _refused(404, "not_found", "nothing is served at this path")

    def named_in(self, refs: Sequence[str], field: str = "loras") -> list[LoraVersion]:
        """The versions that a request means.

        Raises:
            Refused
        """
        found = []
        for place, ref in enumerate(refs):
            try:
                found.append(self._resolved(ref))
            except Refused as refused:
                detail = refused.problem.detail
                fault = FieldError(pointer=f"/{field}/{place}/ref", message=detail)
                raise _refused(422, "unknown_lora", detail, fault) from None
        return found

    def _blend(self, name: str, asked: Asked) -> Answer:
        """Bytes that depend on the sources and the method, published."""
        try:
            request = BlendRequest.model_validate_json(asked.body)
        except ValidationError as error:
            raise Refused(refusal_of(error)) from None
        sources = self.named_in([source.ref for source in request.sources], "sources")
        what = request.model_dump_json(exclude={"alias", "tags", "description"})
        data = b"\x02\0\0\0\0\0\0\0{}" + f"{what} {[source.digest for source in sources]}".encode()
        labels = {"alias": [request.alias] if request.alias else [], "tag": list(request.tags)}
        lineage = LoraLineage(
            origin="blend",
            code="fake",
            request=request.model_dump(mode="json"),
            seed=request.seed,
            sources=[
                LoraSource(ref=version.ref, digest=version.digest, weight=source.weight)
                for version, source in zip(sources, request.sources, strict=True)
            ],
        )
        return self._publish(name, replace(asked, body=data, query=labels, lineage=lineage))

    def _publish(self, name: str, asked: Asked) -> Answer:
        reason = _reason(asked.body)
        if asked.query.get("dry_run") == ["true"]:
            return _answer(_inspection(reason))
        if not _NAME.fullmatch(name):
            raise _refused(422, "invalid_name", f"{name!r} is not a name")
        if reason is not None:
            fault = FieldError(pointer="", message=reason.message, code=reason.code)
            raise _refused(422, "invalid_lora", reason.message, fault)
        digest = f"sha256:{hashlib.sha256(asked.body).hexdigest()}"
        kept = self._kept.setdefault(name, _Kept())
        same = next((version for version in kept.versions.values() if version.digest == digest), None)
        wanted = int(asked.query.get("version", ["0"])[0])
        taken = same if same is not None and wanted not in (0, same.version) else kept.versions.get(wanted)
        if taken is not None and (taken.digest, taken.version) != (digest, wanted):
            raise _refused(409, "version_exists", f"{taken.ref} is there with the digest {taken.digest}")
        version = same or _version(name, wanted or kept.next_version, digest, asked)
        kept.versions[version.version] = version
        kept.next_version = max(kept.next_version, version.version + 1)
        self._files[digest] = asked.body
        for alias in asked.query.get("alias", []):
            self._move(kept, alias, version.version)
        return _answer(version.model_copy(update={"existing": same is not None}), 200 if same else 201)

    def _set_alias(self, name: str, alias: str, asked: Asked) -> Answer:
        try:
            move = LoraAliasMove.model_validate_json(asked.body)
        except ValidationError as error:
            raise Refused(refusal_of(error)) from None
        if alias == "latest" or not _NAME.fullmatch(alias):
            raise _refused(422, "invalid_name", f"{alias!r} cannot be moved")
        self._version(name, str(move.version))
        self._expect(name, alias, asked.headers)
        self._move(self._kept[name], alias, move.version)
        return _answer(self._alias(name, alias))

    def _move(self, kept: _Kept, alias: str, version: int) -> None:
        present = kept.aliases.get(alias)
        if present is None or present.version != version:
            self._moves += 1
            kept.aliases[alias] = _Alias(version, self._moves)

    def _expect(self, name: str, alias: str, headers: Mapping[str, str]) -> None:
        present = self._lookup(name).aliases.get(alias)
        wanted = headers.get("if-match")
        unmet = wanted == "*" and present is None
        unmet |= wanted not in (None, "*") and (present is None or wanted != f'"{present.etag}"')
        unmet |= headers.get("if-none-match") == "*" and present is not None
        if unmet:
            raise _refused(412, "alias_conflict", f"alias '{name}:{alias}' is not as expected")

    def _delete(self, version: LoraVersion) -> None:
        kept = self._kept[version.name]
        for alias, place in kept.aliases.items():
            if place.version == version.version:
                raise _refused(409, "version_in_use", f"{version.ref} is in use by the alias '{alias}'")
        del kept.versions[version.version]

    def _lookup(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None or not kept.versions:
            raise _refused(404, "lora_not_found", f"LoRA '{name}' was not found")
        return kept

    def _lora(self, name: str) -> Lora:
        kept = self._lookup(name)
        return Lora(
            name=name,
            latest=_highest_first(kept)[0],
            version_count=len(kept.versions),
            aliases=[self._alias(name, alias) for alias in sorted({*kept.aliases, "latest"})],
            created_at=_WHEN,
        )

    def _version(self, name: str, number: str) -> LoraVersion:
        version = self._lookup(name).versions.get(int(number) if number.isdecimal() else 0)
        if version is None:
            raise _refused(404, "lora_not_found", f"LoRA '{name}@{number}' was not found")
        return version

    def _alias(self, name: str, alias: str) -> LoraAlias:
        kept = self._lookup(name)
        highest = _highest_first(kept)[0].version
        place = _Alias(highest, highest) if alias == "latest" else kept.aliases.get(alias)
        if place is None:
            raise _refused(404, "lora_not_found", f"alias '{name}:{alias}' was not found")
        return LoraAlias(
            name=name,
            alias=alias,
            ref=f"{name}:{alias}",
            version=place.version,
            digest=kept.versions[place.version].digest,
            etag=str(place.etag),
            updated_at=_WHEN,
        )

    def _resolved(self, ref: str) -> LoraVersion:
        if ref.startswith("sha256:"):
            for kept in self._kept.values():
                for version in kept.versions.values():
                    if version.digest == ref:
                        return version
            raise _refused(404, "lora_not_found", f"LoRA '{ref}' was not found")
        name, at, number = ref.partition("@")
        if at:
            return self._version(name, number)
        name, _, alias = ref.partition(":")
        return self._version(name, str(self._alias(name, alias or "latest").version))

    def _fits(self, name: str, query: Query) -> bool:
        wanted = {key: values[0].casefold() for key, values in query.items()}
        return wanted.get("name", "") in name and any(
            _has(version.triggers, wanted.get("trigger"))
            and _has(version.tags, wanted.get("tag"))
            and version.digest.removeprefix("sha256:").startswith(
                wanted.get("hash", "").removeprefix("sha256:")
            )
            for version in self._kept[name].versions.values()
        )


def _version(name: str, number: int, digest: str, asked: Asked) -> LoraVersion:
    return LoraVersion(
        name=name,
        version=number,
        ref=f"{name}@{number}",
        digest=digest,
        size_bytes=len(asked.body),
        auto_v2=digest.removeprefix("sha256:")[:10],
        auto_v3="",
        kind="lora",
        format="fake",
        family="fake",
        components=["unet"],
        algorithms=["lora"],
        ranks=[],
        tokens=[],
        triggers=list(asked.query.get("trigger", [])),
        tags=list(asked.query.get("tag", [])),
        description="".join(asked.query.get("description", [])),
        metadata={},
        warnings=[],
        created_at=_WHEN,
        lineage=asked.lineage,
    )


def _reason(body: bytes) -> LoraReason | None:
    if body[_PREFIX_BYTES - 1 : _PREFIX_BYTES] == b"{":
        return None
    return LoraReason(code="file.foreign", message="this is no safetensors file")


def _inspection(reason: LoraReason | None) -> LoraInspection:
    if reason is not None:
        return LoraInspection(
            verdict="refused", reasons=[reason], kind="unknown", format="unknown", family="unknown"
        )
    return LoraInspection(verdict="accepted", kind="lora", format="fake", family="fake", components=["unet"])


def _has(words: Sequence[str], part: str | None) -> bool:
    return part is None or any(part in word.casefold() for word in words)


def _highest_first(kept: _Kept) -> list[LoraVersion]:
    return [kept.versions[number] for number in sorted(kept.versions, reverse=True)]


def _answer(
    body: Lora | LoraAlias | LoraInspection | LoraPage | LoraServed | LoraVersion | LoraVersionPage,
    status: int = 200,
) -> Answer:
    headers = {"Content-Type": "application/json"}
    if isinstance(body, LoraAlias):
        headers["ETag"] = f'"{body.etag}"'
    return Answer(status, body.model_dump_json().encode(), headers)


def _refused(status: int, code: str, detail: str, *errors: FieldError) -> Refused:
    title = code.replace("_", " ").capitalize()
    return Refused(Problem(title=title, status=status, detail=detail, code=code, errors=list(errors)))
