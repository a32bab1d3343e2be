"""What the registry promises, on SQLite and on PostgreSQL alike."""

import base64
import hashlib
from io import BytesIO

import pytest

from lora_registry import errors
from lora_registry.registry import Registry
from unit.lora_registry.makers import kohya, layers, numbers, peft, pocket, safetensors


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_what_is_published_can_be_named_and_read_back(registry, lora_file):
    data = lora_file()
    version = registry.publish("ink-wash", BytesIO(data))
    assert (version.ref, version.digest, version.size_bytes) == ("ink-wash@1", digest_of(data), len(data))
    for ref in ("ink-wash", "ink-wash:latest", "ink-wash@1", version.digest):
        assert registry.resolve(ref) == version
    with registry.open(version.digest) as file:
        assert file.read() == data


def test_a_stream_may_come_in_pieces_of_any_size(registry, lora_file):
    data = lora_file()
    version = registry.publish("ink-wash", (data[i : i + 7] for i in range(0, len(data), 7)))
    assert version.digest == digest_of(data)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert version.auto_v3 == hashlib.sha256(body).hexdigest()[:12]


def test_an_upload_can_be_written_before_its_name_is_used(registry, lora_file):
    data = lora_file()
    with registry.receive() as incoming:
        incoming.write(data[:100])
        incoming.write(data[100:])
        assert registry.publish("ink-wash", incoming).digest == digest_of(data)


def test_an_upload_that_is_given_up_leaves_nothing(local, tmp_path, lora_file):
    with local.receive() as incoming:
        incoming.write(lora_file())
    assert not list((tmp_path / "data/blobs/incoming").iterdir())


def test_versions_are_numbered_in_the_order_of_their_publishing(registry, lora_file):
    refs = [registry.publish("ink-wash", [lora_file(seed)]).ref for seed in range(3)]
    assert refs == ["ink-wash@1", "ink-wash@2", "ink-wash@3"]
    assert registry.resolve("ink-wash").number == 3


def test_the_same_bytes_again_are_the_same_version(registry, lora_file):
    first = registry.publish("ink-wash", [lora_file(1)])
    registry.publish("ink-wash", [lora_file(2)])
    again = registry.publish("ink-wash", [lora_file(1)], alias="prod")
    assert not first.existing
    assert again.existing
    assert again.ref == "ink-wash@1"
    assert registry.resolve("ink-wash:prod").number == 1
    assert registry.resolve("ink-wash").number == 2


def test_the_same_bytes_under_another_name_are_stored_once(registry, lora_file):
    first, second = registry.publish("a", [lora_file()]), registry.publish("b", [lora_file()])
    assert (second.ref, second.digest, second.existing) == ("b@1", first.digest, False)
    assert registry.resolve(first.digest).name == "a"


def test_a_number_can_be_asked_for_and_the_next_follows_it(registry, lora_file):
    assert registry.publish("ink-wash", [lora_file(1)], number=7).ref == "ink-wash@7"
    assert registry.publish("ink-wash", [lora_file(1)], number=7).existing
    assert registry.publish("ink-wash", [lora_file(2)]).ref == "ink-wash@8"
    assert registry.publish("ink-wash", [lora_file(3)], number=2).ref == "ink-wash@2"
    assert registry.resolve("ink-wash").number == 8


def test_a_taken_number_is_refused_with_the_winners_digest(registry, lora_file):
    winner = registry.publish("ink-wash", [lora_file(1)], number=3)
    with pytest.raises(errors.VersionExists, match="'ink-wash@3' exists with other bytes") as refused:
        registry.publish("ink-wash", [lora_file(2)], number=3)
    assert refused.value.digest == winner.digest


def test_bytes_that_have_a_number_do_not_get_a_second_one(registry, lora_file):
    first = registry.publish("ink-wash", [lora_file()])
    with pytest.raises(errors.VersionExists, match="'ink-wash@1' has these bytes already") as refused:
        registry.publish("ink-wash", [lora_file()], number=2)
    assert refused.value.digest == first.digest


def test_a_refused_file_changes_nothing_and_gives_its_reasons(registry, tmp_path, lora_file):
    before = registry.publish("ink-wash", [lora_file()], alias="prod")
    bad = safetensors(peft(layers(pocket())) | {"surprise": numbers(3)})
    with pytest.raises(errors.InvalidLora, match="1 of 13 tensors") as refused:
        registry.publish("ink-wash", [bad], alias="prod")
    assert [reason.code for reason in refused.value.reasons] == ["keys.unknown"]
    assert registry.get("ink-wash").versions == 1
    assert registry.resolve("ink-wash:prod") == before
    assert not list(tmp_path.rglob("*.part"))


def test_a_foreign_file_is_refused_at_its_first_bytes(registry):
    def pieces():
        yield b"PK\x03\x04" + bytes(96)
        raise AssertionError("the rest was asked for")

    with pytest.raises(errors.InvalidLora, match="a zip archive"):
        registry.publish("ink-wash", pieces())


def test_too_many_bytes_are_refused_at_the_limit(local, tmp_path, lora_file):
    small = Registry(local._database, local._blobs, [pocket()], max_lora_bytes=1000)
    with pytest.raises(errors.LoraTooLarge, match="1000 bytes"):
        small.publish("ink-wash", [lora_file()])
    assert not list(tmp_path.rglob("*.part"))


def test_bytes_other_than_announced_are_not_published(registry, lora_file):
    with pytest.raises(errors.DigestMismatch):
        registry.publish("ink-wash", [lora_file(1)], digest=digest_of(lora_file(2)))
    with pytest.raises(errors.LoraNotFound):
        registry.get("ink-wash")
    assert registry.publish("ink-wash", [lora_file(1)], digest=digest_of(lora_file(1))).number == 1


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "../a", "a b", "a:b", "a@1", "ü", "a" * 65, "sha256"])
def test_a_bad_name_is_refused(local, lora_file, name):
    with pytest.raises(errors.InvalidName):
        local.publish(name, [lora_file()])


@pytest.mark.parametrize(
    "ref", ["", "a@0", "a@x", "a@-1", "a:", "a:B", "A", "sha256:12", "a@99999999999", "a@1@2", "a/b"]
)
def test_a_bad_reference_is_refused_before_the_database_is_asked(local, ref):
    with pytest.raises(errors.InvalidRef):
        local.resolve(ref)


@pytest.mark.parametrize(
    ("ref", "fact"),
    [
        ("other", "no LoRA is called 'other'"),
        ("ink-wash@9", "'ink-wash' has no version 9"),
        ("ink-wash:prod", "'ink-wash' has no alias 'prod'"),
        ("sha256:" + 64 * "0", "no live version has that digest"),
    ],
)
def test_what_is_not_there_is_said_exactly(registry, lora_file, ref, fact):
    registry.publish("ink-wash", [lora_file()])
    with pytest.raises(errors.LoraNotFound, match=fact):
        registry.resolve(ref)


def test_an_alias_moves_only_from_where_the_caller_saw_it(registry, lora_file):
    for seed in range(3):
        registry.publish("ink-wash", [lora_file(seed)])
    first = registry.set_alias("ink-wash", "prod", 1, if_match="")
    second = registry.set_alias("ink-wash", "prod", 2, if_match=first.etag)
    with pytest.raises(errors.AliasConflict, match="points to version 2") as refused:
        registry.set_alias("ink-wash", "prod", 3, if_match=first.etag)
    assert refused.value.etag == second.etag == registry.alias("ink-wash", "prod").etag
    with pytest.raises(errors.AliasConflict, match="points to version 2"):
        registry.set_alias("ink-wash", "prod", 3, if_match="")
    assert registry.resolve("ink-wash:prod").number == 2
    assert registry.set_alias("ink-wash", "prod", 3).number == 3


def test_an_etag_never_comes_back(registry, lora_file):
    registry.publish("ink-wash", [lora_file()])
    first = registry.set_alias("ink-wash", "prod", 1)
    assert registry.set_alias("ink-wash", "prod", 1) == first
    registry.delete_alias("ink-wash", "prod", if_match=first.etag)
    with pytest.raises(errors.AliasConflict, match="does not exist"):
        registry.set_alias("ink-wash", "prod", 1, if_match=first.etag)
    assert registry.set_alias("ink-wash", "prod", 1).etag != first.etag


def test_an_alias_needs_a_live_version_and_a_known_name(registry, lora_file):
    registry.publish("ink-wash", [lora_file()])
    with pytest.raises(errors.LoraNotFound, match="no version 2"):
        registry.set_alias("ink-wash", "prod", 2)
    with pytest.raises(errors.LoraNotFound, match="no LoRA has that name"):
        registry.set_alias("other", "prod", 1)
    with pytest.raises(errors.LoraNotFound, match="no alias 'prod'"):
        registry.delete_alias("ink-wash", "prod")


def test_latest_follows_the_highest_version_and_nobody_moves_it(registry, lora_file):
    registry.publish("ink-wash", [lora_file()])
    with pytest.raises(errors.InvalidName, match="follows the highest version"):
        registry.set_alias("ink-wash", "latest", 1)
    with pytest.raises(errors.InvalidName, match="follows the highest version"):
        registry.publish("ink-wash", [lora_file()], alias="latest")


def test_a_version_that_an_alias_points_to_is_not_deleted(registry, lora_file):
    registry.publish("ink-wash", [lora_file()], alias="prod")
    registry.set_alias("ink-wash", "blue", 1)
    with pytest.raises(errors.VersionInUse, match="in use by the alias 'blue', 'prod'"):
        registry.delete("ink-wash", 1)
    registry.delete_alias("ink-wash", "prod")
    registry.delete_alias("ink-wash", "blue")
    registry.delete("ink-wash", 1)
    with pytest.raises(errors.LoraNotFound):
        registry.resolve("ink-wash@1")


def test_after_a_delete_latest_is_the_highest_that_is_left(registry, lora_file):
    for seed in range(3):
        registry.publish("ink-wash", [lora_file(seed)])
    registry.delete("ink-wash", 3)
    assert registry.resolve("ink-wash").number == 2
    registry.delete("ink-wash", 1)
    registry.delete("ink-wash", 2)
    with pytest.raises(errors.LoraNotFound):
        registry.get("ink-wash")
    assert registry.list().items == ()


def test_the_number_of_a_deleted_version_is_not_given_out_again(registry, lora_file):
    registry.publish("ink-wash", [lora_file(1)])
    registry.delete("ink-wash", 1)
    with pytest.raises(errors.VersionExists, match="was deleted"):
        registry.publish("ink-wash", [lora_file(2)], number=1)
    again = registry.publish("ink-wash", [lora_file(1)])
    assert (again.number, again.existing) == (2, False)


def test_a_list_comes_in_pages_that_join_without_a_gap(registry, lora_file):
    names = ["a", "a-b", "a.b", "a0", "a_b", "ab", "b"]
    for name in reversed(names):
        registry.publish(name, [lora_file()])
    found, cursor = [], ""
    while True:
        page = registry.list(limit=3, cursor=cursor)
        found += [lora.name for lora in page.items]
        cursor = page.next_cursor
        if not cursor:
            break
    assert found == sorted(names)


def test_versions_come_in_pages_the_highest_first(registry, lora_file):
    for seed in range(5):
        registry.publish("ink-wash", [lora_file(seed)])
    page = registry.versions("ink-wash", limit=3)
    assert [version.number for version in page.items] == [5, 4, 3]
    rest = registry.versions("ink-wash", limit=3, cursor=page.next_cursor)
    assert ([version.number for version in rest.items], rest.next_cursor) == ([2, 1], "")
    with pytest.raises(errors.LoraNotFound):
        registry.versions("other")


@pytest.mark.parametrize("cursor", ["x", "e30", "MQ", "bnVsbA", "\u00fc"])
def test_a_made_up_cursor_is_refused(local, cursor):
    with pytest.raises(errors.InvalidCursor):
        local.list(cursor=cursor)


HOSTILE = ["\x00", "\ud800", "a\x1b[2J", "'; DROP TABLE loras; --", "%", "\u202e", "x" * 10_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_find_nothing_and_break_nothing(registry, lora_file, text):
    registry.publish("ink-wash", [lora_file()], triggers=["tusche"], tags=["style"])
    for field in ("name", "trigger", "tag", "hash"):
        assert registry.list(**{field: text}).items == ()
    for look in (registry.get, registry.versions, lambda name: registry.alias("ink-wash", name)):
        with pytest.raises(errors.LoraNotFound):
            look(text)
    with pytest.raises(errors.InvalidRef):
        registry.resolve(text)
    with pytest.raises(errors.LoraNotFound):
        registry.delete(text, 1)
    for number in ("99999999999999999999", "-5", '"\\u0000"'):
        cursor = base64.urlsafe_b64encode(number.encode()).decode()
        with pytest.raises(errors.InvalidCursor):
            registry.versions("ink-wash", cursor=cursor)


def test_hostile_words_of_a_file_are_left_out(registry, lora_file):
    data = lora_file(
        0, **{"modelspec.trigger_phrase": "good, \ud800, a\x00b, \x1b[2J", "modelspec.tags": "\ud800"}
    )
    version = registry.publish("ink-wash", [data], triggers=["ΐ" * 100])
    assert version.triggers == ("ΐ" * 100, "good")
    assert version.tags == ()
    assert registry.list(trigger="ΐ" * 99).items


def test_a_lora_tells_its_latest_version_its_count_and_its_aliases(registry, lora_file):
    registry.publish("ink-wash", [lora_file(1)], alias="prod")
    registry.publish("ink-wash", [lora_file(2)])
    (lora,) = registry.list().items
    assert lora == registry.get("ink-wash")
    assert (lora.latest.number, lora.versions) == (2, 2)
    assert {alias.alias: alias.number for alias in lora.aliases} == {"latest": 2, "prod": 1}


def test_a_search_finds_by_name_trigger_tag_and_each_hash(registry, lora_file):
    ink = registry.publish("ink-wash", [lora_file(1, 1)], triggers=["Tusche 100%"], tags=["style"])
    registry.publish("100-percent", [lora_file(2, 3)], triggers=["100"], tags=["object"])
    for search in (
        {"name": "nk-w"},
        {"name": "INK"},
        {"trigger": "tusche"},
        {"trigger": "0%"},
        {"tag": "STYLE"},
        {"hash": ink.digest},
        {"hash": ink.digest.removeprefix("sha256:").upper()},
        {"hash": ink.auto_v2},
        {"hash": ink.auto_v3},
        {"name": "ink", "tag": "style", "hash": ink.auto_v2[:8]},
    ):
        assert [lora.name for lora in registry.list(**search).items] == ["ink-wash"], search
    for search in (
        {"name": "_"},
        {"trigger": "%%"},
        {"hash": "zz"},
        {"hash": "0" * 10},
        {"name": "ink", "tag": "object"},
    ):
        assert registry.list(**search).items == (), search


def test_a_search_does_not_find_deleted_versions(registry, lora_file):
    registry.publish("ink-wash", [lora_file(1)], triggers=["tusche"])
    registry.publish("ink-wash", [lora_file(2)])
    registry.delete("ink-wash", 1)
    assert registry.list(trigger="tusche").items == ()


@pytest.mark.parametrize(
    "words", [["a/b"], ["a\\b"], ["\x00"], [""], ["x" * 101], [str(i) for i in range(33)]]
)
def test_words_that_are_no_words_are_refused(local, lora_file, words):
    with pytest.raises(errors.InvalidLabel):
        local.publish("ink-wash", [lora_file()], triggers=words)


def test_what_a_file_says_of_itself_leaves_the_registry_only_by_the_allow_list(registry, lora_file):
    data = lora_file(
        0,
        **{
            "ss_network_dim": "4",
            "ss_output_name": "private-project",
            "ss_sd_model_name": "/home/jane.doe/models/secret.safetensors",
            "modelspec.author": "Jane Doe",
            "modelspec.trigger_phrase": "tusche, /home/jane",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "ss_base_model_version": "C:\\jane",
            "ss_tag_frequency": '{"10_jane doe": {"tusche stil": 4, "jane": 1}}',
            "ss_dataset_dirs": '{"10_jane doe": {"n_repeats": 10, "img_count": 4}}',
        },
    )
    version = registry.publish("ink-wash", [data])
    assert dict(version.metadata) == {
        "ss_network_dim": "4",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }
    assert version.triggers == ("tusche", "tusche stil")
    assert "jane" not in repr(registry.get("ink-wash")).lower()


def test_a_version_tells_what_intake_found(registry):
    base = pocket()
    data = safetensors(kohya(base, layers(base), ranks=[2, 4], alphas=[1.0, None]))
    version = registry.publish("ink-wash", [data])
    assert version == registry.resolve("ink-wash")
    assert (version.kind, version.format, version.family) == ("lora", "kohya-sgm", "pocket SDXL")
    assert [(r.rank, r.alpha, r.modules) for r in version.ranks] == [(2, 1.0, 3), (4, 4.0, 3)]
    assert [reason.code for reason in version.warnings] == ["alpha.partial"]


def test_inspecting_publishes_nothing(registry, lora_file):
    assert registry.inspect([lora_file()]).verdict == "accepted"
    assert registry.inspect([b"PK\x03\x04" * 8]).reasons[0].code == "file.pickle"
    assert registry.list().items == ()


def test_the_engine_gets_a_plan_with_true_scales(registry, kohya_file):
    version = registry.publish("ink-wash", [kohya_file])
    header, found = registry.plan(version.digest)
    assert {(module.rank, module.scale) for module in found.modules} == {(2, 0.5), (4, 1.0)}
    assert all(key in header.tensors for module in found.modules for key in module.tensors.values())


def test_missing_bytes_are_said_to_be_missing(local, lora_file):
    version = local.publish("ink-wash", [lora_file()])
    local._blobs.delete(version.digest)
    with pytest.raises(errors.BlobMissing, match="publish the file again"):
        local.open(version.digest)
    assert local.publish("ink-wash", [lora_file()]).existing
    assert local.open(version.digest).read() == lora_file()


def test_what_one_replica_publishes_the_other_sees_at_once(opened, lora_file):
    one, other = opened(), opened()
    one.publish("ink-wash", [lora_file()], alias="prod")
    assert other.resolve("ink-wash:prod") == one.resolve("ink-wash:prod")


def test_a_publication_that_is_not_permitted_in_the_end_leaves_nothing(registry, lora_file):
    before = registry.publish("ink-wash", [lora_file(1)], alias="prod")

    def refuse():
        raise PermissionError("somebody else's by now")

    with pytest.raises(PermissionError, match="somebody else"):
        registry.publish("ink-wash", [lora_file(2)], alias="prod", permit=refuse)
    assert registry.resolve("ink-wash:prod").digest == before.digest
    assert registry.get("ink-wash").latest.digest == before.digest


def test_a_lineage_stays_with_the_first_publish_of_the_bytes(registry, lora_file):
    lineage = {"origin": "train-job", "seed": 3, "request": {"recipe": {"rank": 4, "targets": ["to_q"]}}}
    made = registry.publish("ink-wash", [lora_file()], lineage=lineage)
    assert made.lineage == lineage
    assert registry.publish("ink-wash", [lora_file()], lineage={"origin": "blend"}).lineage == lineage
    assert registry.resolve("ink-wash@1").lineage == lineage
    assert registry.get("ink-wash").latest.lineage == lineage
    assert registry.publish("elsewhere", [lora_file(2)]).lineage == {}


@pytest.mark.parametrize("lineage", [{"text": "x" * (2 << 20)}, {"number": float("nan")}, {"of": object()}])
def test_a_lineage_that_is_no_json_or_too_long_is_refused(registry, lora_file, lineage):
    with pytest.raises(errors.InvalidLabel, match="a lineage"):
        registry.publish("ink-wash", [lora_file()], lineage=lineage)
    with pytest.raises(errors.LoraNotFound):
        registry.get("ink-wash")
