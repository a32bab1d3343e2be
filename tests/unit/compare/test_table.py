"""What callers see of comparisons."""

import hashlib

import pytest

from darkroom.types import CompareVerdict, Problem
from lora_registry.errors import InvalidCursor
from service.compare.errors import CompareFileNotFound, ComparisonNotFound
from service.compare.table import FRUITLESS_ATTEMPTS
from service.store.errors import KeyReused, LeaseLost
from work_store import MODEL, at_once, draft

PROBLEM = Problem(title="The picture failed", status=500, detail="it is black", code="defect")
VERDICT = CompareVerdict(
    arm="ink",
    metric="sharpness",
    decides=True,
    outcome="higher",
    pairs=2,
    mean_difference=1.5,
    interval=(0.5, 2.5),
    note="sharper",
)


def new(comparisons, **changes):
    return comparisons.create(draft(**changes))[0].id


def claim(comparisons, model=MODEL, lease_seconds=60.0):
    return comparisons.claim_next(holder="here 1 1", lease_seconds=lease_seconds, model=model)


def keep(held, index, picture=b"png", **changes):
    cell = held.comparison.cells[index]
    held.keep(cell.model_copy(update={"width": 64, "seconds": 0.5, **changes}), picture, b"small " + picture)


def states(comparisons, comparison_id):
    return [event.state for event in comparisons.events(comparison_id) if event.type == "state"]


def read(opened_file):
    found, file = opened_file
    with file:
        content = file.read()
    assert (found.size_bytes, found.digest) == (len(content), "sha256:" + hashlib.sha256(content).hexdigest())
    return content


def test_a_new_comparison_waits_and_says_all_that_was_planned(comparisons):
    wanted = draft()
    made, replayed = comparisons.create(wanted)
    assert not replayed
    assert (made.state, made.stage, made.done, made.attempts) == ("queued", "waiting", 0, 0)
    assert (made.request, made.plan, made.model) == (wanted.request, wanted.plan, MODEL)
    assert (made.cells, made.metrics, made.name) == (
        list(wanted.cells),
        list(wanted.metrics),
        "Does the ink help?",
    )
    assert made.id.startswith("cmp_")
    assert comparisons.get(made.id) == made
    assert [event.total for event in comparisons.events(made.id)] == [4]


def test_of_an_arm_only_the_fields_that_were_named_come_back_as_named(comparisons):
    found = comparisons.get(new(comparisons))
    ink = found.request.arms[1].set
    assert ink.model_fields_set == {"loras", "refiner"}
    assert ink.refiner.model_fields_set == {"denoising_end"}
    assert found.plan.arms[0].settings.model_fields_set == {"num_inference_steps", "guidance_scale"}
    assert found.cells[0].request.model_fields_set == draft().cells[0].request.model_fields_set


def test_text_that_a_database_has_no_characters_for_is_kept(comparisons):
    odd = "a red circle\0 ❤ \\u0000"
    made = new(comparisons, prompts=[odd])
    claim(comparisons).finish("succeeded", conclusion=odd, warnings=[odd])
    found = comparisons.get(made)
    assert found.plan.prompts == [found.conclusion] == found.warnings == [odd]


def test_the_same_key_with_the_same_body_is_the_same_comparison(comparisons):
    made, _ = comparisons.create(draft(), key="k", fingerprint="f")
    assert comparisons.create(draft(), key="k", fingerprint="f") == (made, True)
    assert comparisons.made_with("k", "f") == made
    assert comparisons.made_with("other", "f") is None
    assert len(comparisons.list().items) == 1
    assert [event.id for event in comparisons.events(made.id)] == [1]


def test_a_key_with_another_body_is_refused(comparisons):
    comparisons.create(draft(), key="k", fingerprint="f")
    with pytest.raises(KeyReused, match="'k' was used with another body before; choose a new one"):
        comparisons.create(draft(), key="k", fingerprint="g")
    with pytest.raises(KeyReused):
        comparisons.made_with("k", "g")


def test_many_posts_with_one_key_at_once_make_one_comparison(opened_comparisons):
    def post(table):
        return lambda: table.create(draft(), key="k", fingerprint="f")

    made = at_once(*[post(opened_comparisons()) for _ in range(4)])
    assert len({comparison.id for comparison, _ in made}) == 1
    assert sorted(replayed for _, replayed in made) == [False] + [True] * 3


def test_a_comparison_that_is_not_there_is_said_so(comparisons):
    asks = (
        comparisons.get,
        comparisons.cancel,
        lambda it: comparisons.open(it, "sheet.png"),
        lambda it: comparisons.picture(it, 0),
    )
    for ask in asks:
        with pytest.raises(ComparisonNotFound, match="'cmp_x' was not found"):
            ask("cmp_x")
    assert comparisons.events("cmp_x") == []


def test_comparisons_are_listed_newest_first_in_pages_and_without_their_cells(comparisons, clock):
    made = []
    for number in range(5):
        clock.now += number % 2  # some within the same millisecond
        made.append(new(comparisons))
    seen, cursor = [], ""
    while True:
        page = comparisons.list(limit=2, cursor=cursor)
        seen += page.items
        if not (cursor := page.next_cursor):
            break
    assert sorted(one.id for one in seen) == sorted(made)
    assert [one.created_at for one in seen] == sorted((one.created_at for one in seen), reverse=True)
    assert all(not one.cells and one.plan.cells == 4 for one in seen)
    comparisons.cancel(made[2])
    assert [one.id for one in comparisons.list(state="cancelled").items] == [made[2]]
    with pytest.raises(InvalidCursor):
        comparisons.list(cursor="nonsense")


def test_the_oldest_that_was_planned_for_the_model_is_claimed(comparisons, clock):
    new(comparisons, model="e" * 64)
    clock.now += 1
    oldest = new(comparisons)
    clock.now += 1
    newest = new(comparisons)
    held = claim(comparisons)
    assert (held.comparison.id, held.comparison.state, held.comparison.attempts) == (oldest, "running", 1)
    assert held.pinned == draft().pinned
    assert claim(comparisons).comparison.id == newest
    assert claim(comparisons) is None


def test_of_many_that_claim_at_once_each_has_another_one_or_none(opened_comparisons):
    tables = [opened_comparisons() for _ in range(3)]
    made = {new(tables[0]) for _ in range(2)}
    for _ in range(3):
        held = at_once(*[lambda table=table: claim(table) for table in tables])
        assert {one.comparison.id for one in held if one} == made
        assert held.count(None) == 1
        for one in held:
            if one:
                one.release()


def test_a_cell_that_is_kept_is_seen_at_once(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    held.stage("drawing")
    keep(held, 2, b"a picture", measurements={"sharpness": 2.5, "ssim": float("nan")})
    found = comparisons.get(comparison_id)
    assert (found.done, found.stage) == (1, "drawing")
    cell = found.cells[2]
    assert (cell.state, cell.image, cell.width) == ("done", f"/v1/runs/{comparison_id}/images/2", 64)
    assert cell.measurements == {"sharpness": 2.5}
    assert {other.state for other in found.cells if other.index != 2} == {"waiting"}
    assert read(comparisons.picture(comparison_id, 2)) == b"a picture"
    assert (held.picture(2), held.thumbnail(2)) == (b"a picture", b"small a picture")


def test_a_cell_that_is_kept_again_is_the_same_cell(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    keep(held, 1)
    before = comparisons.get(comparison_id), comparisons.events(comparison_id)
    keep(held, 1)
    held.fail(1, PROBLEM)  # a picture that is there is not lost
    assert (comparisons.get(comparison_id), comparisons.events(comparison_id)) == before


def test_a_failed_cell_says_why_and_may_be_drawn_after_all(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    held.fail(0, PROBLEM)
    failed = comparisons.get(comparison_id)
    assert (failed.done, failed.cells[0].state, failed.cells[0].problem) == (1, "failed", PROBLEM)
    assert comparisons.events(comparison_id)[-1].message == "it is black"
    with pytest.raises(CompareFileNotFound, match=r"has no file 'images/0.png'"):
        comparisons.picture(comparison_id, 0)
    with pytest.raises(CompareFileNotFound):
        held.picture(0)
    held.keep(failed.cells[0], b"png", b"small")
    mended = comparisons.get(comparison_id)
    assert (mended.done, mended.cells[0].state, mended.cells[0].problem) == (1, "done", None)


def test_a_cell_that_the_matrix_does_not_have_has_no_picture(comparisons):
    comparison_id = new(comparisons)
    for index in (4, -1, 2**40):
        with pytest.raises(CompareFileNotFound):
            comparisons.picture(comparison_id, index)


def test_measurements_are_added_to_those_that_a_cell_has(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    keep(held, 0, measurements={"sharpness": 1.0, "contrast": 0.5})
    keep(held, 1, measurements={"sharpness": 2.0})
    held.measure({0: {"sharpness": 3.0}, 1: {"ssim": 0.25, "psnr": float("inf")}})
    first, second = comparisons.get(comparison_id).cells[:2]
    assert first.measurements == {"sharpness": 3.0, "contrast": 0.5}
    assert second.measurements == {"sharpness": 2.0, "ssim": 0.25}


def test_a_file_takes_the_place_of_one_with_its_name(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    held.put_file("sheet.png", "image/png", b"first")
    sheet = held.put_file("sheet.png", "image/png", b"second")
    held.put_file("differences/3.png", "image/png", b"")
    assert [one.name for one in comparisons.get(comparison_id).files] == ["differences/3.png", "sheet.png"]
    assert comparisons.open(comparison_id, "sheet.png")[0] == sheet
    assert read(comparisons.open(comparison_id, "sheet.png")) == b"second"
    with pytest.raises(CompareFileNotFound, match=r"has no file 'report.html'"):
        comparisons.open(comparison_id, "report.html")


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "/etc", "A.png", "x\n", "a" * 82, "ä"])
def test_a_name_that_is_none_for_a_file_is_refused(comparisons, name):
    new(comparisons)
    with pytest.raises(ValueError, match="no name for a file"):
        claim(comparisons).put_file(name, "image/png", b"x")


def test_the_end_records_what_was_found(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    done = held.finish("succeeded", verdicts=[VERDICT], conclusion="It helps.", warnings=["One prompt only."])
    assert (done.state, done.stage, done.verdicts) == ("succeeded", "done", [VERDICT])
    assert (done.conclusion, done.warnings) == ("It helps.", ["One prompt only."])
    assert done.finished_at is not None
    (listed,) = comparisons.list().items
    assert (listed.conclusion, listed.verdicts) == ("It helps.", [])
    assert comparisons.get(comparison_id) == done


def test_a_comparison_that_fails_as_a_whole_says_why(comparisons):
    comparison_id = new(comparisons)
    failed = claim(comparisons).finish("failed", problem=PROBLEM)
    assert (failed.state, failed.problem) == ("failed", PROBLEM)
    assert comparisons.events(comparison_id)[-1].message == "it is black"


def test_events_are_numbered_from_one_without_a_gap_and_can_be_read_on(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    held.stage("drawing")
    held.stage("drawing")  # said already
    for index in range(3):
        keep(held, index)
    held.fail(3, PROBLEM)
    held.stage("measuring")
    held.finish("succeeded")
    events = comparisons.events(comparison_id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = ["state", "state", "stage", "cell", "cell", "cell", "cell", "stage", "stage", "state"]
    assert [event.type for event in events] == kinds
    assert [(event.cell, event.done) for event in events if event.type == "cell"] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]
    assert {event.total for event in events} == {4}
    assert comparisons.events(comparison_id, after=6) == events[6:]
    assert comparisons.events(comparison_id, after=2, limit=2) == events[2:4]
    assert comparisons.events(comparison_id, after=2**40) == []


def test_a_waiting_comparison_is_cancelled_at_once(comparisons):
    comparison_id = new(comparisons)
    cancelled = comparisons.cancel(comparison_id)
    assert (cancelled.state, cancelled.finished_at is None) == ("cancelled", False)
    assert comparisons.cancel(comparison_id) == cancelled
    assert claim(comparisons) is None


def test_a_running_comparison_hears_of_its_cancellation_with_its_heartbeat(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    keep(held, 0)
    assert held.renew() is False
    asked = comparisons.cancel(comparison_id)
    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert comparisons.cancel(comparison_id) == asked
    assert held.renew() is True
    ended = held.finish("cancelled", conclusion="Cancelled after 1 of 4 cells.")
    assert (ended.state, ended.done, ended.cells[0].state) == ("cancelled", 1, "done")
    assert states(comparisons, comparison_id) == ["queued", "running", "cancelled"]


def test_a_comparison_that_was_complete_when_its_cancellation_came_has_succeeded(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    comparisons.cancel(comparison_id)
    assert held.finish("succeeded").state == "succeeded"


def test_a_comparison_that_has_ended_stays_as_it_is_when_it_is_cancelled(comparisons):
    comparison_id = new(comparisons)
    done = claim(comparisons).finish("succeeded")
    assert comparisons.cancel(comparison_id) == done


def test_one_whose_process_died_is_cancelled_at_once(comparisons, clock):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    comparisons.cancel(comparison_id)
    clock.now += 61
    assert comparisons.cancel(comparison_id).state == "cancelled"
    with pytest.raises(LeaseLost):
        held.renew()


def test_one_that_was_cancelled_before_its_process_died_is_taken_up_by_nobody(comparisons, clock):
    comparison_id = new(comparisons)
    claim(comparisons)
    comparisons.cancel(comparison_id)
    clock.now += 61
    assert claim(comparisons, model="of another replica") is None
    assert comparisons.get(comparison_id).state == "cancelled"


def test_a_released_comparison_waits_with_its_cells(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    held.stage("drawing")
    keep(held, 3)
    held.release()
    waiting = comparisons.get(comparison_id)
    assert (waiting.state, waiting.stage, waiting.done) == ("queued", "waiting", 1)
    again = claim(comparisons)
    assert (again.comparison.attempts, again.comparison.cells[3].state) == (2, "done")
    assert again.picture(3) == b"png"


def test_one_that_is_released_after_its_cancellation_is_cancelled(comparisons):
    comparison_id = new(comparisons)
    held = claim(comparisons)
    comparisons.cancel(comparison_id)
    held.release()
    assert comparisons.get(comparison_id).state == "cancelled"


def test_a_lease_that_ran_out_is_taken_up_with_its_cells_and_the_former_holder_writes_nothing_more(
    comparisons, clock
):
    comparison_id = new(comparisons)
    stale = claim(comparisons)
    keep(stale, 0, b"old")
    stale.put_file("sheet.png", "image/png", b"sheet")
    clock.now += 61
    fresh = claim(comparisons)
    assert (fresh.comparison.id, fresh.comparison.done, fresh.picture(0)) == (comparison_id, 1, b"old")
    before = comparisons.get(comparison_id), comparisons.events(comparison_id)
    writes = [
        stale.renew,
        stale.release,
        lambda: stale.stage("measuring"),
        lambda: keep(stale, 0, b"stale"),
        lambda: keep(stale, 1),
        lambda: stale.fail(2, PROBLEM),
        lambda: stale.measure({0: {"sharpness": 9.0}}),
        lambda: stale.put_file("sheet.png", "image/png", b"stale"),
        lambda: stale.finish("succeeded"),
        lambda: stale.finish("failed", problem=PROBLEM),
    ]
    for write in writes:
        with pytest.raises(LeaseLost, match=f"'{comparison_id}' is no longer this process's"):
            write()
    assert (comparisons.get(comparison_id), comparisons.events(comparison_id)) == before


def test_a_heartbeat_extends_the_lease(comparisons, clock):
    new(comparisons)
    held = claim(comparisons)
    for _ in range(3):
        clock.now += 50
        held.renew()
        assert claim(comparisons) is None


def test_a_late_heartbeat_keeps_a_comparison_that_nobody_took(comparisons, clock):
    new(comparisons)
    held = claim(comparisons)
    clock.now += 1000
    held.renew()
    assert claim(comparisons) is None


def test_one_that_dies_three_times_without_a_new_cell_has_failed(comparisons, clock):
    comparison_id = new(comparisons)
    keep(claim(comparisons), 0)  # the first attempt got somewhere
    for _ in range(FRUITLESS_ATTEMPTS):
        clock.now += 61
        keep(claim(comparisons), 0)  # and the others not beyond it
    clock.now += 61
    assert claim(comparisons) is None
    failed = comparisons.get(comparison_id)
    assert (failed.state, failed.problem.code, failed.done) == ("failed", "process_died", 1)
    assert "3 times in a row at this comparison without a new finished cell" in failed.problem.detail


def test_one_that_gets_on_between_its_deaths_goes_on(comparisons, clock):
    new(comparisons, seeds=range(FRUITLESS_ATTEMPTS + 1))
    for index in range(2 * FRUITLESS_ATTEMPTS):
        held = claim(comparisons)
        assert held.comparison.done == index
        keep(held, index)
        clock.now += 61


def test_one_that_failed_by_its_deaths_does_not_stand_in_the_way_of_the_next(comparisons, clock):
    new(comparisons)
    for _ in range(FRUITLESS_ATTEMPTS):
        claim(comparisons)
        clock.now += 61
    healthy = new(comparisons)
    assert claim(comparisons).comparison.id == healthy


def test_a_collection_leaves_what_comparisons_name(comparisons, table, clock):
    comparison_id = new(comparisons)
    held = claim(comparisons, lease_seconds=1e12)
    keep(held, 0)
    keep(held, 1, b"replaced")
    keep(held, 1, b"by this")
    held.put_file("sheet.png", "image/png", b"sheet")
    clock.now += 10**9
    assert table.gc(also=comparisons.digests).blobs == 2  # a picture that was replaced, and its thumbnail
    assert (held.picture(0), held.thumbnail(1)) == (b"png", b"small by this")
    assert read(comparisons.open(comparison_id, "sheet.png")) == b"sheet"


def test_a_picture_that_is_kept_again_while_it_is_collected_is_there(comparisons, opened, clock):
    new(comparisons)
    held, jobs = claim(comparisons, lease_seconds=1e12), opened()
    for index in range(4):
        clock.now += 10**9
        at_once(
            lambda index=index: keep(held, index, b"the same"),
            lambda: jobs.gc(grace_seconds=0, also=comparisons.digests),
        )
        assert held.picture(index) == b"the same"


def test_what_ended_long_ago_is_forgotten_with_all_that_it_had(comparisons, table, clock):
    old = comparisons.create(draft(), key="k", fingerprint="f")[0].id
    held = claim(comparisons)
    keep(held, 0)
    held.put_file("sheet.png", "image/png", b"sheet")
    held.finish("succeeded")
    clock.now += 100
    waiting = new(comparisons)
    recent = new(comparisons)
    comparisons.cancel(recent)
    clock.now += 10
    assert comparisons.expire(older_than_seconds=50) == 1
    assert comparisons.expire(older_than_seconds=50) == 0
    assert {one.id for one in comparisons.list().items} == {waiting, recent}
    with pytest.raises(ComparisonNotFound):
        comparisons.get(old)
    assert (comparisons.events(old), list(comparisons.digests())) == ([], [])
    assert comparisons.made_with("k", "f") is None
    clock.now += 10**9
    assert table.gc(also=comparisons.digests).blobs == 3


def test_replicas_that_forget_at_once_count_each_comparison_once(opened_comparisons, clock):
    first, second = opened_comparisons(), opened_comparisons()
    for _ in range(4):
        first.cancel(new(first))
    clock.now += 100
    forgotten = at_once(
        lambda: first.expire(older_than_seconds=9), lambda: second.expire(older_than_seconds=9)
    )
    assert sum(forgotten) == 4
    assert first.list().items == []
