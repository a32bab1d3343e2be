"""`python -m service`."""

import hashlib
import json

import pytest

from service.__main__ import main
from service.settings import ApiKey, Settings


def test_a_new_key_is_shown_once_beside_the_entry_that_knows_only_its_hash(capsys):
    main(["key", "bob", "--scopes", "generate,loras:read"])
    lines = capsys.readouterr().out.splitlines()
    secret = next(line for line in lines if line.startswith("dk_"))
    entry = ApiKey.model_validate_json(lines[-1])
    assert entry.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert (entry.name, entry.scopes) == ("bob", {"generate", "loras:read"})
    assert secret not in json.dumps(lines[-1])


def test_two_keys_are_never_the_same(capsys):
    main(["key", "bob"])
    main(["key", "bob"])
    secrets = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dk_")]
    assert len(set(secrets)) == 2


@pytest.mark.parametrize("arguments", [["key", "Bob X"], ["key", "bob", "--scopes", "everything"]])
def test_a_key_that_the_service_would_refuse_is_not_made(arguments, capsys):
    with pytest.raises(SystemExit, match="darkroom: "):
        main(arguments)
    assert capsys.readouterr().out == ""


def test_every_setting_is_listed(capsys):
    main(["settings"])
    listed = capsys.readouterr().out
    assert all(f"DARKROOM_{name.upper()}=" in listed for name in Settings.model_fields)


def test_an_open_address_without_keys_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.delenv("DARKROOM_AUTH", raising=False)
    monkeypatch.delenv("DARKROOM_API_KEYS", raising=False)
    with pytest.raises(SystemExit, match=r"refusing to listen on 0\.0\.0\.0 without API keys"):
        main(["serve", "--host", "0.0.0.0"])


def test_a_bad_setting_is_named_as_it_is_set(monkeypatch):
    monkeypatch.setenv("DARKROOM_TIMEOUT_SECONDS", "-1")
    with pytest.raises(SystemExit, match="DARKROOM_TIMEOUT_SECONDS: Input should be greater than 0"):
        main(["serve"])
