"""What must be true of a registry after anything whatever happened to it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from lora_registry.registry import Registry

NO_GRACE = -1.0
"""Below zero, so that what was written this very moment is old enough."""


def check(registry: Registry, acknowledged: Mapping[str, str], staging: Path) -> None:
    """Every acknowledged reference answers with its digest, every name has its whole bytes, nothing else is left."""
    for ref, digest in acknowledged.items():
        assert registry.resolve(ref).digest == digest, f"{ref} is not what was acknowledged"
    registry.gc(grace_seconds=NO_GRACE)
    live = set()
    for lora in registry.list(limit=1000).items:
        versions = registry.versions(lora.name, limit=1000).items
        numbers = {version.number for version in versions}
        assert {alias.number for alias in lora.aliases} <= numbers, f"an alias of {lora.name} dangles"
        assert max(numbers) == lora.latest.number
        for version in versions:
            with registry.open(version.digest) as file:
                data = file.read()
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == version.digest, f"{version.ref} is damaged"
            live.add(version.digest)
    assert registry.verify().damaged == ()
    assert {blob.digest for blob in registry._blobs.stored()} == live, "a blob without a version survived gc"
    assert not list(staging.glob("*")), "a temporary file survived gc"
