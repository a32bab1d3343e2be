"""Who may call what: API keys by their hash, scopes by route, and the rule for an open bind."""

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Iterable
from typing import Final

import pydantic

from service.api import exchange
from service.api.refusals import Forbidden, Unauthenticated
from service.api.templates import ByRoute
from service.errors import InvalidSettings
from service.settings import ApiKey, Scope, Settings

OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Asked by machines that hold no key; they tell nothing about anybody's work."""

SCOPES: Final[dict[tuple[str, str], Scope]] = {
    ("POST", "/v1/generate"): "generate",
    ("POST", "/generate"): "generate",
    ("POST", "/v1/compare"): "generate",
    ("POST", "/compare"): "generate",
    ("GET", "/v1/runs"): "generate",
    ("GET", "/v1/runs/{id}"): "generate",
    ("DELETE", "/v1/runs/{id}"): "generate",
    ("GET", "/v1/runs/{id}/events"): "generate",
    ("GET", "/v1/runs/{id}/images/{cell}"): "generate",
    ("GET", "/v1/runs/{id}/files/{name:path}"): "generate",
    ("GET", "/v1/loras"): "loras:read",
    ("GET", "/v1/loras/{name}"): "loras:read",
    ("GET", "/v1/loras/{name}/versions"): "loras:read",
    ("POST", "/v1/loras/{name}/versions"): "loras:write",
    ("GET", "/v1/loras/{name}/versions/{version}"): "loras:read",
    ("DELETE", "/v1/loras/{name}/versions/{version}"): "loras:write",
    ("GET", "/v1/loras/{name}/versions/{version}/file"): "loras:read",
    ("GET", "/v1/loras/{name}/aliases/{alias}"): "loras:read",
    ("PUT", "/v1/loras/{name}/aliases/{alias}"): "loras:write",
    ("DELETE", "/v1/loras/{name}/aliases/{alias}"): "loras:write",
    ("PUT", "/v1/loras/{name}/versions/{version}/pin"): "loras:write",
    ("DELETE", "/v1/loras/{name}/versions/{version}/pin"): "loras:write",
    ("POST", "/v1/loras/{name}/blends"): "loras:write",
    ("GET", "/v1/lora-versions/{ref}"): "loras:read",
    ("GET", "/v1/datasets"): "train",
    ("POST", "/v1/datasets"): "train",
    ("POST", "/v1/datasets/synthesize"): "train",
    ("GET", "/v1/datasets/{id}"): "train",
    ("DELETE", "/v1/datasets/{id}"): "train",
    ("GET", "/v1/datasets/{id}/pictures/{place}"): "train",
    ("GET", "/v1/train-jobs"): "train",
    ("POST", "/v1/train-jobs"): "train",
    ("POST", "/v1/train-jobs/estimate"): "train",
    ("GET", "/v1/train-jobs/{job_id}"): "train",
    ("DELETE", "/v1/train-jobs/{job_id}"): "train",
    ("POST", "/v1/train-jobs/{job_id}/retry"): "train",
    ("GET", "/v1/train-jobs/{job_id}/events"): "train",
    ("GET", "/v1/train-jobs/{job_id}/artifacts"): "train",
    ("GET", "/v1/train-jobs/{job_id}/artifacts/{name:path}"): "train",
}
"""What a key must be allowed, by route; any key may do what is not listed (it only reads)."""

_SCOPES: Final = ByRoute(SCOPES)
_KEYS = pydantic.TypeAdapter(tuple[ApiKey, ...])


class KeyRing:
    """The keys that a service knows. One without keys, or with `auth=disabled`, lets everybody in."""

    def __init__(self, keys: Iterable[ApiKey], *, disabled: bool = False) -> None:
        self._keys = () if disabled else tuple((bytes.fromhex(key.sha256), key) for key in keys)

    @classmethod
    def from_settings(cls, settings: Settings) -> "KeyRing":
        """The keys of the settings and of `api_keys_file`.

        Raises:
            InvalidSettings: the file cannot be read, or two keys share a name or a hash.
        """
        keys = (*settings.api_keys, *_keys_in_file(settings))
        for what, values in (("name", [k.name for k in keys]), ("sha256", [k.sha256 for k in keys])):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise InvalidSettings(f"two API keys share the {what} {min(twice)!r}; give each its own")
        return cls(keys, disabled=settings.auth == "disabled")

    def __len__(self) -> int:
        return len(self._keys)

    def authorize(self, scope: exchange.Scope) -> str | None:
        """The name of the key that may make this request; `None` where none is needed.

        Raises:
            Unauthenticated: there is no key in the request, or an unknown one.
            Forbidden: the key lacks the route's scope.
        """
        if not self._keys or scope["path"] in OPEN_PATHS:
            return None
        key = self._find(exchange.header(scope["headers"], b"authorization") or "")
        needed = _SCOPES.find(scope)
        if needed is not None and not key.scopes & {needed, "admin"}:
            raise Forbidden(key.name, needed)
        return key.name

    def _find(self, authorization: str) -> ApiKey:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated
        digest = hashlib.sha256(secret.strip().encode()).digest()
        # Every key is compared, so that time tells nothing about which one came close.
        matching = [key for known, key in self._keys if hmac.compare_digest(known, digest)]
        if not matching:
            raise Unauthenticated
        return matching[0]


def check_bind(settings: Settings, host: str) -> None:
    """Let a service start only where strangers cannot reach it, unless it has keys or says `auth=disabled`.

    Raises:
        InvalidSettings: `host` is reachable from elsewhere and nobody would be asked for a key; or the keys
            cannot be read.
    """
    keys = KeyRing.from_settings(settings)
    if len(keys) or settings.auth == "disabled" or is_loopback(host):
        return
    raise InvalidSettings(
        f"refusing to listen on {host} without API keys: whoever reaches this address could use the service. "
        "Set DARKROOM_API_KEYS or DARKROOM_API_KEYS_FILE (`python -m service key NAME` makes a key), "
        "bind to 127.0.0.1, or set DARKROOM_AUTH=disabled if something in front of it asks for credentials"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys_in_file(settings: Settings) -> tuple[ApiKey, ...]:
    path = settings.api_keys_file
    if path is None:
        return ()
    try:
        return _KEYS.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a JSON list of {name, sha256, scopes}"
        raise InvalidSettings(f"DARKROOM_API_KEYS_FILE={path} cannot be used: {reason}") from exc
