"""Resources as YAML gives them, found again by what they are."""

from collections.abc import Iterable
from typing import Any

Resource = Any
"""A document, or a part of one."""


def by_kind(resources: Iterable[Resource]) -> dict[str, Resource]:
    """Each by its kind; claims, of which there are several, by their names."""
    listed = list(resources)
    found = {_key(resource): resource for resource in listed}
    assert len(found) == len(listed), "two resources of one kind"
    return found


def _key(resource: Resource) -> str:
    kind: str = resource["kind"]
    return str(resource["metadata"]["name"]) if kind == "PersistentVolumeClaim" else kind
