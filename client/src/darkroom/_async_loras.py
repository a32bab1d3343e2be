"""`client.loras` of `AsyncDarkroom`. `_loras` is its twin: change both."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from os import PathLike
from pathlib import Path
from typing import Unpack

from darkroom import _lora_calls
from darkroom._callers import AsyncCaller
from darkroom._paging import async_every
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


class AsyncLoraRegistry:
    """`LoraRegistry` for asyncio: the same methods and arguments, awaited; `list` and `versions` with `async for`."""

    def __init__(self, call: AsyncCaller) -> None:
        self._call = call

    async def publish(
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
        """Send a safetensors file and get its version, as `LoraRegistry.publish`."""
        with opened(file) as source:
            upload = await asyncio.to_thread(Upload, source, progress)
            call = _lora_calls.publish(
                name,
                upload,
                version=version,
                alias=alias,
                triggers=triggers,
                tags=tags,
                description=description,
            )
            return _lora_calls.confirmed(await self._call(call), upload)

    async def inspect(self, file: File, *, progress: Told | None = None) -> LoraInspection:
        """What the service would say about a file. Nothing is published."""
        with opened(file) as source:
            upload = await asyncio.to_thread(Upload, source, progress)
            return await self._call(_lora_calls.inspect(upload))

    async def list(
        self, *, name: str = "", trigger: str = "", tag: str = "", hash: str = ""
    ) -> AsyncIterator[Lora]:
        """All LoRAs by name, or those that are searched for, as `LoraRegistry.list`."""
        async for lora in async_every(
            lambda cursor: self._call(
                _lora_calls.page(name=name, trigger=trigger, tag=tag, hash=hash, cursor=cursor)
            )
        ):
            yield lora

    async def get(self, name: str) -> Lora:
        """A LoRA with its highest version and its aliases. Raises: `NotFound`."""
        return await self._call(_lora_calls.get(name))

    async def versions(self, name: str) -> AsyncIterator[LoraVersion]:
        """All versions of a LoRA, the highest first. Raises: `NotFound`."""
        async for version in async_every(
            lambda cursor: self._call(_lora_calls.versions(name, cursor=cursor))
        ):
            yield version

    async def version(self, ref: str) -> LoraVersion:
        """The version that a ref means now. Raises: `NotFound`."""
        return await self._call(_lora_calls.version(ref))

    async def alias(self, name: str, alias: str) -> LoraAlias:
        """Where an alias points, with the `etag` to move it from there. Raises: `NotFound`."""
        return await self._call(_lora_calls.alias(name, alias))

    async def set_alias(
        self, name: str, alias: str, version: int, *, if_match: str | None = None
    ) -> LoraAlias:
        """Point an alias to a version, as `LoraRegistry.set_alias`."""
        return await self._call(_lora_calls.set_alias(name, alias, version, if_match))

    async def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Take an alias away; its version stays. Raises: `NotFound`, `Conflict`."""
        await self._call(_lora_calls.delete_alias(name, alias, if_match))

    async def delete(self, name: str, version: int) -> None:
        """Hide a version from now on. Raises: `Conflict` where an alias points to it, `NotFound`."""
        await self._call(_lora_calls.delete(name, version))

    async def blend(
        self, name: str, sources: Iterable[BlendSource | str], **options: Unpack[_lora_calls.BlendOptions]
    ) -> LoraVersion:
        """Make one LoRA of several, and publish it as a version of `name`. A ref alone is a source at a weight of 1.

        Raises: `InvalidRequest` where the sources cannot be blended so.
        """
        return await self._call(_lora_calls.blend(name, _lora_calls.blend_request(sources, options)))

    async def pin(self, name: str, version: int) -> LoraServed:
        """Have the replica that answers keep a version in its memory. Raises: `NotFound`."""
        return await self._call(_lora_calls.pin(name, version))

    async def unpin(self, name: str, version: int) -> None:
        """Let a version leave its memory again. Raises: `NotFound`."""
        await self._call(_lora_calls.unpin(name, version))

    async def download(
        self,
        ref: str,
        path: str | PathLike[str],
        *,
        form: LoraForm = "original",
        progress: Told | None = None,
    ) -> Path:
        """The file of a version, and where it is now, as `LoraRegistry.download`."""
        version = await self.version(ref)
        where = _lora_calls.target(Path(path), version, form)
        digest = version.digest if form == "original" else None
        with Download(where, digest=digest, progress=progress) as download:
            await self._call(_lora_calls.file(version, form, download))
            return download.finish()
