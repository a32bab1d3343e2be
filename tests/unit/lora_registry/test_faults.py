"""Whatever step fails, by an error, a full disk or a kill -9: nothing acknowledged is lost, nothing half is visible."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from lora_registry import errors, faults
from lora_registry.registry import Registry
from unit.lora_registry.invariants import check
from unit.lora_registry.makers import pocket
from unit.lora_registry.story import MAX_POINTS, lora, settled, story

HERE = Path(__file__).resolve()


@pytest.mark.parametrize(("action", "length"), [("error", None), ("full", 1)])
def test_each_step_may_fail_and_the_registry_stays_whole(tmp_path, armed, action, length):
    points = set()
    with Registry.connect([pocket()], data=tmp_path / "0") as registry:
        before = {"before:prod": registry.publish("before", [lora(99)], alias="prod").digest}
    for number in range(1, MAX_POINTS):
        data = shutil.copytree(tmp_path / "0", tmp_path / str(number))
        with Registry.connect([pocket()], data=data) as registry:
            plan = armed(f"#{number}={action}")
            steps = []
            with suppress(errors.RegistryError):
                steps.extend(islice(story(registry, "ink-wash"), length))
            points |= set(plan.passed)
            armed("")
            check(registry, before | settled(steps), data / "blobs/incoming")
            # The same process can go on: nothing is stuck, and trying again succeeds.
            assert registry.publish("ink-wash", [lora(0)]).digest
        with Registry.connect([pocket()], data=data) as registry:
            check(registry, before | settled(steps), data / "blobs/incoming")
        if len(plan.passed) < number:
            break
    assert {"incoming.write", "blob.rename", "publish.after_blob", "catalog.commit"} <= points
    assert length or "blob.delete" in points


def run_story(kind: str, url: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[3]}{os.pathsep}{HERE.parents[2]}"}
    done = subprocess.run(
        [sys.executable, HERE.with_name("story.py"), kind, url, folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_each_step_the_registry_is_whole_when_it_is_opened_again(database_url, tmp_path):
    assert re.match(r"the last of [4-9]\d points", run_story("kill", database_url, tmp_path / "data"))


def test_publishers_killed_at_random_lose_nothing_that_they_acknowledged(database_url, tmp_path):
    assert re.match(r"\d+ published", run_story("random", database_url, tmp_path / "data"))


def test_a_full_disk_says_so(local, armed, lora_file):
    armed("incoming.write=full")
    with pytest.raises(errors.StorageFull, match="nothing was published"):
        local.publish("ink-wash", [lora_file()])


def test_faults_are_off_unless_the_environment_asks(armed):
    assert faults.load() is None
    assert not faults.armed()
    armed("publish.after_blob=error")
    assert faults.armed()


def test_a_read_only_disk_is_a_failure_of_storage_and_not_of_the_caller(
    local, tmp_path, monkeypatch, lora_file
):
    def refuse(*_arguments):
        raise OSError(30, "Read-only file system", "/secret/place")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(errors.StorageUnavailable, match="read-only file system") as refused:
        local.publish("ink-wash", [lora_file()])
    assert "secret" not in str(refused.value)
    monkeypatch.undo()
    assert local.publish("ink-wash", [lora_file()]).number == 1


def test_a_dead_postgresql_session_is_replaced_without_a_restart(postgres, opened, database_url, lora_file):
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite has no sessions")
    import psycopg

    registry = opened()
    registry.publish("ink-wash", [lora_file()])
    assert registry.resolve("ink-wash").number == 1
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'registry_%'"
        )
    assert registry.resolve("ink-wash").number == 1
    assert registry.get("ink-wash").versions == 1
