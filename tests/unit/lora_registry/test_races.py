"""Several publishers, collectors and movers at once: one order of events, the same for everybody."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_registry import errors
from unit.lora_registry.invariants import NO_GRACE, check

PUBLISHERS = 6


def at_once(*works: Callable[[], object]) -> list[object]:
    """The results, or the registry's errors, of works that start together."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        start.wait()
        try:
            return work()
        except errors.RegistryError as exc:
            return exc

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def test_of_two_publishers_of_one_version_one_wins_and_the_other_learns_the_winners_digest(opened, lora_file):
    replicas = [opened(), opened()]
    for number in range(1, 6):
        files = [lora_file(number * 10 + i) for i in range(2)]
        works = [
            lambda r=r, f=f, n=number: r.publish("ink-wash", [f], number=n)
            for r, f in zip(replicas, files, strict=True)
        ]
        outcomes = at_once(*works)
        winner = replicas[0].resolve(f"ink-wash@{number}")
        (loser,) = [outcome for outcome in outcomes if isinstance(outcome, errors.VersionExists)]
        assert winner in outcomes
        assert loser.digest == winner.digest


def test_publishers_of_the_same_bytes_all_get_the_one_version(opened, tmp_path, lora_file):
    replicas = [opened() for _ in range(PUBLISHERS)]
    found = at_once(*[lambda r=r: r.publish("ink-wash", [lora_file()]) for r in replicas])
    assert {version.ref for version in found} == {"ink-wash@1"}
    assert sorted(version.existing for version in found) == [False] + [True] * (PUBLISHERS - 1)
    check(replicas[0], {"ink-wash@1": found[0].digest}, tmp_path / "blobs/incoming")


def test_publishers_of_different_bytes_get_numbers_without_gap_or_double(opened, tmp_path, lora_file):
    replicas = [opened() for _ in range(PUBLISHERS)]
    found = at_once(*[lambda r=r, i=i: r.publish("ink-wash", [lora_file(i)]) for i, r in enumerate(replicas)])
    assert sorted(version.number for version in found) == list(range(1, PUBLISHERS + 1))
    check(replicas[0], {version.ref: version.digest for version in found}, tmp_path / "blobs/incoming")


def test_of_two_movers_of_an_alias_with_the_same_etag_one_wins(opened, lora_file):
    replicas = [opened(), opened()]
    for seed in range(3):
        replicas[0].publish("ink-wash", [lora_file(seed)])
    etag = replicas[0].set_alias("ink-wash", "prod", 1).etag
    works = [
        lambda r=r, n=n: r.set_alias("ink-wash", "prod", n, if_match=etag) for n, r in enumerate(replicas, 2)
    ]
    outcomes = at_once(*works)
    assert sum(isinstance(outcome, errors.AliasConflict) for outcome in outcomes) == 1


def test_a_collection_never_takes_the_bytes_of_a_version_that_is_being_published(opened, tmp_path, lora_file):
    publisher, collector = opened(), opened()
    acknowledged = {}
    for round_number in range(12):
        # The bytes are there from an old, deleted version, and nothing needs them: the collector may take them.
        old = publisher.publish("ink-wash", [lora_file(round_number)])
        publisher.delete("ink-wash", old.number)
        found = at_once(
            lambda n=round_number: publisher.publish("ink-wash", [lora_file(n)]),
            lambda: collector.gc(grace_seconds=NO_GRACE),
        )
        acknowledged[found[0].ref] = found[0].digest
        with publisher.open(found[0].digest) as file:
            assert file.read() == lora_file(round_number)
    check(publisher, acknowledged, tmp_path / "blobs/incoming")


def test_a_blob_that_is_collected_before_its_version_is_recorded_is_stored_again(
    local, tmp_path, monkeypatch, lora_file
):
    record = local._catalog.record

    def collect_first(*arguments):
        assert local.gc(grace_seconds=NO_GRACE).blobs == 1
        return record(*arguments)

    monkeypatch.setattr(local._catalog, "record", collect_first)
    version = local.publish("ink-wash", [lora_file()])
    monkeypatch.undo()
    check(local, {"ink-wash": version.digest}, tmp_path / "data/blobs/incoming")


def test_a_collection_leaves_an_upload_in_progress_alone(local, lora_file):
    data = lora_file()
    with local.receive() as incoming:
        incoming.write(data[:500])
        assert local.gc(grace_seconds=NO_GRACE).temp_files == 0
        incoming.write(data[500:])
        assert local.publish("ink-wash", incoming).number == 1


def test_a_collection_keeps_what_was_deleted_within_the_grace_period(registry, lora_file):
    version = registry.publish("ink-wash", [lora_file()])
    registry.delete("ink-wash", 1)
    assert registry.gc().blobs == 0
    with registry.open(version.digest) as file:
        assert file.read() == lora_file()
    report = registry.gc(grace_seconds=NO_GRACE)
    assert (report.blobs, report.size_bytes) == (1, len(lora_file()))
    with pytest.raises(errors.BlobMissing):
        registry.open(version.digest)


def test_a_collection_looks_again_before_it_deletes(local, tmp_path, monkeypatch, lora_file):
    version = local.publish("ink-wash", [lora_file()])
    # As if the version had been published after the collection had looked what is needed.
    monkeypatch.setattr(local._catalog, "live_digests", lambda since_ms: set())
    assert local.gc(grace_seconds=NO_GRACE).blobs == 0
    monkeypatch.undo()
    check(local, {"ink-wash": version.digest}, tmp_path / "data/blobs/incoming")
