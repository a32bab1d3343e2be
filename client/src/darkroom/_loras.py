"""`client.loras`: the registry. `_async_loras` is its twin: change both."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Unpack

from darkroom import _lora_calls
from darkroom._callers import Caller
from darkroom._paging import every
from darkroom._transfers import Download, File, Told, Upload, opened
from darkroom.types import (
    BlendSource,
    Lora,
    LoraAlias,
    LoraForm,
    LoraInspection,
    LoraServed,
    LoraVersion,
)


class LoraRegistry:
    """The LoRAs that a service has, by name. A ref is `name` (its highest version), `name@3`, `name:alias` or
    `sha256:…`.

    >>> published = client.loras.publish("ink-wash", lora_file, alias="prod", triggers=["ink wash"])
    >>> client.loras.version("ink-wash:prod") == published
    True
    """

    def __init__(self, call: Caller) -> None:
        self._call = call

    def publish(
        self,
        name: str,
        file: File,
        *,
        version: int | None = None,
        alias: str | None = None,
        triggers: Iterable[str] = (),
        tags: Iterable[str] = (),
        description: str = "",
        progress: Told | None = None,
    ) -> LoraVersion:
        """Send a safetensors file, from the disk and never whole in memory, and get its version.

        The same bytes again are the version that they were (`.existing`), so a publish that fails on the way is
        repeated. `version` asks for one number, `alias` is moved in the same step. Trigger words and tags of the
        file are added to those given. `progress(sent, total)` hears of the bytes, from 0 again if they are sent
        again.

        Raises: `InvalidRequest` with the code `invalid_lora` where the file is refused, `.errors` says why;
        `Conflict` where the number is taken by other bytes; else any `DarkroomError`.
        """
        with opened(file) as source:
            upload = Upload(source, progress)
            call = _lora_calls.publish(
                name,
                upload,
                version=version,
                alias=alias,
                triggers=triggers,
                tags=tags,
                description=description,
            )
            return _lora_calls.confirmed(self._call(call), upload)

    def inspect(self, file: File, *, progress: Told | None = None) -> LoraInspection:
        """What the service would say about a file. Nothing is published."""
        with opened(file) as source:
            return self._call(_lora_calls.inspect(Upload(source, progress)))

    def list(self, *, name: str = "", trigger: str = "", tag: str = "", hash: str = "") -> Iterator[Lora]:
        """All LoRAs by name, or those that are searched for, page by page as you go.

        `name`, `trigger` and `tag` are parts of what is searched for; `hash` is a sha256, AutoV2 or AutoV3, or the
        first 8 digits of one.

        >>> [lora.name for lora in client.loras.list(trigger="ink")]
        ['ink-wash']
        """
        yield from every(
            lambda cursor: self._call(
                _lora_calls.page(name=name, trigger=trigger, tag=tag, hash=hash, cursor=cursor)
            )
        )

    def get(self, name: str) -> Lora:
        """A LoRA with its highest version and its aliases. Raises: `NotFound`."""
        return self._call(_lora_calls.get(name))

    def versions(self, name: str) -> Iterator[LoraVersion]:
        """All versions of a LoRA, the highest first, page by page as you go. Raises: `NotFound`."""
        yield from every(lambda cursor: self._call(_lora_calls.versions(name, cursor=cursor)))

    def version(self, ref: str) -> LoraVersion:
        """The version that a ref means now. Raises: `NotFound`."""
        return self._call(_lora_calls.version(ref))

    def alias(self, name: str, alias: str) -> LoraAlias:
        """Where an alias points, with the `etag` to move it from there. Raises: `NotFound`."""
        return self._call(_lora_calls.alias(name, alias))

    def set_alias(self, name: str, alias: str, version: int, *, if_match: str | None = None) -> LoraAlias:
        """Point an alias to a version: with `if_match` only if it has that etag, or, if that is "", if it is new.

        Raises: `Conflict` where somebody else moved it, `NotFound`.
        """
        return self._call(_lora_calls.set_alias(name, alias, version, if_match))

    def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Take an alias away; its version stays. Raises: `NotFound`, `Conflict`."""
        self._call(_lora_calls.delete_alias(name, alias, if_match))

    def delete(self, name: str, version: int) -> None:
        """Hide a version from now on. Raises: `Conflict` where an alias points to it, `NotFound`."""
        self._call(_lora_calls.delete(name, version))

    def blend(
        self, name: str, sources: Iterable[BlendSource | str], **options: Unpack[_lora_calls.BlendOptions]
    ) -> LoraVersion:
        """Make one LoRA of several, and publish it as a version of `name`. A ref alone is a source at a weight of 1.

        Raises: `InvalidRequest` where the sources cannot be blended so.
        """
        return self._call(_lora_calls.blend(name, _lora_calls.blend_request(sources, options)))

    def pin(self, name: str, version: int) -> LoraServed:
        """Have the replica that answers keep a version in its memory. Raises: `NotFound`."""
        return self._call(_lora_calls.pin(name, version))

    def unpin(self, name: str, version: int) -> None:
        """Let a version leave its memory again. Raises: `NotFound`."""
        self._call(_lora_calls.unpin(name, version))

    def download(
        self,
        ref: str,
        path: str | PathLike[str],
        *,
        form: LoraForm = "original",
        progress: Told | None = None,
    ) -> Path:
        """The file of a version, and where it is now: at `path`, or in that folder under a name of its own.

        It is there whole or not at all; one that was published byte for byte. `kohya` has the tensor names of A1111
        and ComfyUI, `diffusers` those of diffusers. `progress(received, total)` hears of the bytes.

        Raises: `NotFound`; `InvalidRequest` where the form cannot say what the LoRA does.
        """
        version = self.version(ref)
        where = _lora_calls.target(Path(path), version, form)
        digest = version.digest if form == "original" else None
        with Download(where, digest=digest, progress=progress) as download:
            self._call(_lora_calls.file(version, form, download))
            return download.finish()
