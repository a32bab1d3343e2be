"""The command line: what it prints, and how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_registry import cli
from unit.lora_registry.makers import POCKET_FOLDER

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a command on this test's registry: (exit code, output, errors)."""

    def command(*arguments: str, data: str = "data") -> tuple[int, str, str]:
        code = cli.main(["--data", str(tmp_path / data), "--base", str(POCKET_FOLDER), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def file(tmp_path, lora_file):
    path = tmp_path / "ink.safetensors"
    path.write_bytes(lora_file())
    return str(path)


def test_an_empty_registry_lists_nothing(run):
    assert run("ls") == (0, "no LoRA\n", "")


def test_publish_list_show_and_remove(run, file):
    code, out, _ = run(
        "publish", "ink-wash", file, "--alias", "prod", "--trigger", "tusche", "--tag", "style"
    )
    assert code == 0
    assert out.startswith("ink-wash@1  sha256:")
    assert run("publish", "ink-wash", file)[1].endswith("existing\n")
    head, row = run("ls")[1].splitlines()
    assert head.split()[:3] == ["NAME", "LATEST", "VERSIONS"]
    assert row.split()[:4] == ["ink-wash", "1", "1", "lora"]
    assert "ink-wash@1" in run("ls", "ink-wash")[1]
    shown = run("show", "ink-wash:prod")[1]
    assert "AutoV2, AutoV3" in shown
    assert "aliases: latest, prod" in shown
    assert run("ls", "--trigger", "nothing")[1] == "no LoRA\n"
    code, _, err = run("rm", "ink-wash@1")
    assert (code, err) == (
        1,
        "lora_registry: LoRA version 'ink-wash@1' is in use by the alias 'prod'; move or delete the alias first\n",
    )
    assert run("alias", "ink-wash", "prod", "0")[0] == 0
    assert run("rm", "ink-wash@1")[0] == 0
    assert run("gc", "--grace-seconds=-1")[1].startswith("removed 1 blobs")


def test_a_refused_file_is_told_with_its_reasons(run, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"PK\x03\x04" + bytes(100))
    for more in ([], ["--dry-run"]):
        code, out, err = run("publish", "bad", str(bad), *more)
        assert code == 1
        assert "a zip archive" in out + err
        assert "[file.pickle]" in out + err
    assert run("ls")[1] == "no LoRA\n"


def test_an_export_is_a_file(run, file, tmp_path, lora_file):
    run("publish", "ink-wash", file)
    target = tmp_path / "out.safetensors"
    assert run("export", "ink-wash", str(target))[0] == 0
    assert target.read_bytes() == lora_file()
    assert run("export", "ink-wash", str(target), "--form", "kohya")[0] == 0
    assert b"lora_unet_" in target.read_bytes()
    code, _, err = run("export", "ink-wash", str(tmp_path / "no/such/place"))
    assert (code, "No such file" in err) == (1, True)


def test_verify_ends_with_1_where_something_is_damaged(run, file, tmp_path):
    run("publish", "ink-wash", file)
    assert run("verify") == (
        0,
        f"1 blobs ({(tmp_path / 'ink.safetensors').stat().st_size / 1000:.1f} kB) hashed, 0 damaged\n",
        "",
    )
    (blob,) = (tmp_path / "data/blobs/sha256").glob("*/*")
    blob.unlink()
    code, out, _ = run("verify")
    assert code == 1
    assert "missing  ink-wash@1" in out


def test_an_alias_moves_with_its_etag(run, file):
    run("publish", "ink-wash", file)
    code, out, _ = run("alias", "ink-wash", "prod", "1", "--if-match", "")
    assert code == 0
    assert "ink-wash:prod -> ink-wash@1" in out
    assert run("alias", "ink-wash", "prod", "1", "--if-match", "")[0] == 1


@pytest.mark.parametrize(
    "arguments", [["ls"], ["--data", "x"], ["--data", "x", "sing"], ["--database", "sqlite://", "ls"]]
)
def test_a_wrong_command_line_ends_with_2(arguments, monkeypatch):
    monkeypatch.delenv("LORA_REGISTRY_DATA", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_a_registry_that_cannot_be_used_ends_with_3(run, tmp_path, capsys):
    assert cli.main(["--database", "mysql://x/y", "--blobs", str(tmp_path), "ls"]) == 3
    (tmp_path / "taken").write_text("a file")
    assert run("ls", data="taken")[0] == 3


def test_the_registry_needs_neither_torch_nor_http_and_starts_without_what_it_seldom_needs():
    program = "import sys, lora_registry.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "sqlalchemy" in loaded
    assert not {"torch", "httpx", "fastapi", "safetensors", "alembic", "obstore", "psycopg"} & set(loaded)


def test_an_unknown_base_is_refused(tmp_path, capsys):
    assert cli.main(["--data", str(tmp_path / "d"), "--base", str(tmp_path), "ls"]) == 1
    assert "neither 'sdxl' nor a folder" in capsys.readouterr().err
