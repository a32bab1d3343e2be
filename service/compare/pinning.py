"""What a comparison's refs of LoRAs meant when it was made, kept with it: one that is deleted meanwhile still works."""

from collections.abc import Mapping
from typing import Final

import pydantic

from lora_registry import LoraVersion

_VERSIONS: Final = pydantic.TypeAdapter(dict[str, LoraVersion])


def pinned(versions: Mapping[str, LoraVersion]) -> str:
    """The versions as text."""
    return _VERSIONS.dump_json(dict(versions)).decode()


def unpinned(text: str) -> dict[str, LoraVersion]:
    """The same, read again."""
    return _VERSIONS.validate_json(text)
