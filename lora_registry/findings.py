"""Reasons, collected while a header is read: one per code, with all the tensors that it is about."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lora_registry.records import MAX_KEYS_SHOWN, Reason


@dataclass
class Findings:
    """Grows while a file is looked at. The first message of a code stands for all of them."""

    _messages: dict[str, str] = field(default_factory=dict)
    _keys: dict[str, list[str]] = field(default_factory=dict)

    def add(self, code: str, message: str, keys: Iterable[str] = ()) -> None:
        self._messages.setdefault(code, message)
        self._keys.setdefault(code, []).extend(keys)

    def __bool__(self) -> bool:
        return bool(self._messages)

    def reasons(self) -> tuple[Reason, ...]:
        return tuple(
            Reason(code, message, tuple(self._keys[code][:MAX_KEYS_SHOWN]), len(self._keys[code]))
            for code, message in self._messages.items()
        )
