"""The use case: several LoRAs of the registry become one, published as a new version."""

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from darkroom.types import BlendRequest, LoraVersion
from lora_registry import BaseModel, Registry
from lora_registry import LoraVersion as Record
from service import __version__, lora_records
from service.adapters import resolved
from service.engine.engine import Engine
from service.engine.loras import blends
from service.engine.loras.residency import read_adapter
from service.errors import InvalidBlend


class Blending:
    """Blends in a thread of its own, one at a time: it is work for a processor, and pictures come first.

    `registry` and `engine` may block or raise; the engine is asked only for W0 of layers that a DoRA changes.
    """

    def __init__(
        self, registry: Callable[[], Registry], engine: Callable[[], Engine], thread: Executor
    ) -> None:
        self._registry, self._engine, self._thread = registry, engine, thread

    async def publish(self, name: str, request: BlendRequest) -> LoraVersion:
        """The blend as a version of `name`; the same blend again is the version that it was.

        Raises:
            UnknownLora: a source is not there. InvalidBlend: they cannot be blended so.
            RegistryError: as of a publish, or a source's file cannot be had.
            ModelLoading, EngineStopped: a source is a DoRA, and no engine can say what it is relative to.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._published(name, request))

    def _published(self, name: str, request: BlendRequest) -> LoraVersion:
        registry = self._registry()
        versions = resolved(registry, [source.ref for source in request.sources], "sources")
        base = _common_base(registry, versions)
        adapters = [read_adapter(registry, version.digest) for version in versions]
        blended = blends.blend(
            [(adapter, source.weight) for adapter, source in zip(adapters, request.sources, strict=True)],
            base.layers,
            method=request.method,
            rank=request.rank,
            density=request.density,
            majority_sign=request.majority_sign,
            seed=request.seed,
            pristine=lambda component, layer: self._engine().pristine_of(component, layer),
        )
        published = registry.publish(
            name,
            io.BytesIO(blended.to_bytes()),
            alias=request.alias,
            triggers=dict.fromkeys(word for version in versions for word in version.triggers),
            tags=request.tags,
            description=request.description,
            lineage={
                "origin": "blend",
                "code": __version__,
                "seed": request.seed,
                "sources": [
                    {"ref": version.ref, "digest": version.digest, "weight": source.weight}
                    for version, source in zip(versions, request.sources, strict=True)
                ],
                "request": request.model_dump(mode="json"),
            },
        )
        return lora_records.version(published)


def _common_base(registry: Registry, versions: Sequence[Record]) -> BaseModel:
    families = {version.family for version in versions}
    if len(families) > 1:
        raise InvalidBlend(
            f"the sources are for different models ({', '.join(sorted(families))})", field="sources"
        )
    found = next((base for base in registry.bases if base.name in families), None)
    if found is None:
        raise InvalidBlend(f"the sources are for {min(families)}, which is not served here", field="sources")
    return found
