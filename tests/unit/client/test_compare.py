"""`client.compare`: comparisons begun once and waited for, in a program's view, and the fake that others test with."""

import asyncio
import inspect
import io
import json
import pickle
import sys
from typing import get_type_hints

import httpx
import pytest

from darkroom import (
    Arm,
    AsyncComparisons,
    CompareFailed,
    CompareRequest,
    Comparisons,
    Darkroom,
    GenerateRequest,
    InvalidRequest,
    LoraUse,
    NotFound,
    PictureSettings,
    Refiner,
    SeedCount,
    Timeout,
)
from darkroom._compare_options import CompareOptions, compare_request
from darkroom.testing import FakeDarkroom

ARMS = {"plain": {}, "blurry": {"negative_prompt": "blurry"}}
BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


def lora():
    return io.BytesIO(b"\x02\0\0\0\0\0\0\0{}")


def sent(prompts="a fox", **options):
    return json.loads(compare_request(prompts, options).model_dump_json(exclude_unset=True))


def compared(fake, kind, prompts, **options):
    """The comparison of a result, whichever of the twins it came by."""
    if kind == "sync":
        return fake.client().compare(prompts, **options).comparison

    async def in_a_loop():
        async with fake.async_client() as client:
            return (await client.compare(prompts, **options)).comparison

    return asyncio.run(in_a_loop())


def through(fake, answer):
    """A client of the fake whose requests go by that function."""
    client = fake.client()
    client._http = httpx.Client(transport=httpx.MockTransport(answer))
    return client


def test_the_twins_have_the_same_methods_and_arguments():
    def public(kind):
        return {name: method for name, method in vars(kind).items() if not name.startswith("_")}

    assert public(Comparisons).keys() == public(AsyncComparisons).keys()
    for name, method in public(Comparisons).items():
        twin = public(AsyncComparisons)[name]
        assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
        assert inspect.isasyncgenfunction(twin) == (name in ("list", "events")), name


def test_compare_has_a_keyword_for_every_field_of_the_request():
    assert {"prompts", "dry_run", *get_type_hints(CompareOptions)} == set(CompareRequest.model_fields)
    for method in (Darkroom.compare, Darkroom.plan_comparison):
        assert inspect.signature(method).parameters["options"].annotation.__args__ == (CompareOptions,)


def test_a_result_has_every_cell_by_arm_prompt_and_seed(fake, client):
    result = client.compare(["a fox", "a cat"], seeds=[7, 8], arms=ARMS, metric="sharpness")
    assert (result.arms, result.prompts, result.seeds) == (("plain", "blurry"), ("a fox", "a cat"), (7, 8))
    assert [(cell.arm, cell.prompt, cell.seed) for cell in result][:3] == [
        ("plain", "a fox", 7),
        ("blurry", "a fox", 7),
        ("plain", "a fox", 8),
    ]
    cell = result["blurry", "a cat", 8]
    assert (cell.arm, cell.prompt, cell.seed, cell.state) == ("blurry", "a cat", 8, "done")
    assert cell.measurements.keys() >= {"sharpness", "perceptual_distance"}
    assert cell.receipt.negative_prompt == "blurry"
    assert [one.seed for one in result["blurry", "a cat"]] == [7, 8]
    assert [one.prompt for one in result["plain"]] == ["a fox", "a fox", "a cat", "a cat"]
    assert len(result) == 8
    assert "8 of 8 cells" in repr(result)


def test_a_cells_picture_is_fetched_once_and_its_request_gives_it_again(fake, client, tmp_path):
    cell = client.compare("a fox", seeds=[7], arms=ARMS)["blurry", "a fox", 7]
    before = len(fake.requests)
    picture = cell.image
    assert (picture.seed, picture.receipt.negative_prompt, picture.pil().size) == (7, "blurry", (64, 64))
    assert cell.image is picture
    assert cell._repr_png_() == picture.save(tmp_path / "fox").read_bytes()
    assert [one.path for one in fake.requests[before:]] == [cell.cell.image]
    assert client.generate_request(cell.request).image.data == picture.data


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (("blury", "a fox", 7), "no arm 'blury'.*did you mean 'blurry'"),
        (("plain", "a foxx", 7), "no prompt 'a foxx'.*did you mean 'a fox'"),
        (("plain", "a fox", 9), "no seed 9 .*7, 8"),
        ("wrong", "no arm 'wrong'.*'plain', 'blurry'"),
        (("plain", "a fox", 7, 1), "a key is an arm"),
    ],
)
def test_a_key_that_is_not_there_is_told_what_is(client, key, told):
    result = client.compare("a fox", seeds=[7, 8], arms=ARMS)
    with pytest.raises(KeyError, match=told):
        result[key]


def test_differences_are_paired_with_the_baseline(client):
    result = client.compare("a fox", seeds=[7, 8], arms=ARMS, baseline="blurry")
    by_hand = {
        ("a fox", seed): result["plain", "a fox", seed].measurements["contrast"]
        - result["blurry", "a fox", seed].measurements["contrast"]
        for seed in (7, 8)
    }
    assert result.differences("contrast", "plain") == by_hand
    assert set(result.differences("contrast", "blurry").values()) == {0.0}
    distances = result.differences("perceptual_distance", "plain")
    assert distances["a fox", 7] == result["plain", "a fox", 7].measurements["perceptual_distance"] > 0
    with pytest.raises(KeyError, match=r"no metric 'contrst'.*did you mean 'contrast'"):
        result.differences("contrst", "plain")


def test_arms_that_are_alike_are_drawn_once_and_do_not_differ(client):
    result = client.compare("a fox", seeds=8, arms={"one": {}, "other": {}}, metric="sharpness")
    assert (result.plan.pictures, result.plan.cells) == (8, 16)
    assert result.plan.evaluations.planned * 2 == result.plan.evaluations.naive
    assert {verdict.outcome for verdict in result.verdicts} == {"identical"}
    assert set(result.differences("sharpness", "other").values()) == {0.0}
    first, second = result["one"][0], result["other"][0]
    assert (second.cell.same_as, second.cell.evaluations) == (first.cell.index, 0)
    assert first.cell.pixels_digest == second.cell.pixels_digest


def test_the_metric_that_decides_is_the_one_that_was_named(client):
    result = client.compare("a fox", seeds=3, arms=ARMS, metric="clip_score", better="lower")
    (decides,) = (verdict for verdict in result.verdicts if verdict.decides)
    assert (decides.metric, decides.arm, decides.outcome) == ("clip_score", "blurry", "too_few")
    assert result.conclusion == decides.note + "."
    assert "nothing is decided" in client.compare("a fox", arms=ARMS).conclusion


def test_arms_can_be_said_in_short(client):
    explicit = [
        Arm(name="plain"),
        Arm(
            name="ink",
            set=PictureSettings(
                loras=(LoraUse(ref="ink@2"), LoraUse(ref="b", weight=0.5)), negative_prompt=None
            ),
            prompt="{prompt}, in ink",
        ),
    ]
    short = {
        "plain": {},
        "ink": {
            "loras": ["ink@2", LoraUse(ref="b", weight=0.5)],
            "negative_prompt": None,
            "prompt": "{prompt}, in ink",
        },
    }
    assert sent(arms=short)["arms"][1] == sent(arms=explicit)["arms"][1]
    assert sent(arms=short)["arms"][1]["set"]["negative_prompt"] is None
    assert (
        sent(arms=short, seeds=3)["seeds"]
        == {"count": 3}
        == sent(arms=short, seeds=SeedCount(count=3))["seeds"]
    )
    assert sent(arms=short, seeds=range(2))["seeds"] == [0, 1]
    assert sent(preset="article", lora="ink")["lora"] == {"ref": "ink"}
    axes = {"loras": [(), "ink", [LoraUse(ref="ink", weight=0.5)]], "refiner": [None, Refiner(enabled=False)]}
    assert sent(axes=axes)["axes"] == {
        "loras": [[], "ink", [{"ref": "ink", "weight": 0.5}]],
        "refiner": [None, {"enabled": False}],
    }


def test_a_setting_that_an_arm_names_is_sent_though_it_is_the_default(client):
    base = PictureSettings(guidance_scale=5.0, refiner=Refiner(denoising_end=0.5))
    arms = {
        "five": {},
        "default": PictureSettings(guidance_scale=7.5),
        "no refiner": {"refiner": {"enabled": False}},
    }
    result = client.compare("a fox", seeds=[1], base=base, arms=arms)
    assert [result[arm][0].receipt.guidance_scale for arm in result.arms] == [5.0, 7.5, 5.0]
    assert result["no refiner"][0].request.refiner == Refiner(enabled=False, denoising_end=0.5)


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"arms": {"a": {}, "b": {"guidence_scale": 3}}}, "/arms/1/set/guidence_scale"),
        ({"arms": {"a": "nothing"}}, "/arms/0/set"),
        ({"arms": ARMS, "base": {"seed": 7}}, "/base/seed"),
        ({"arms": ARMS, "base": GenerateRequest(prompt="a cat")}, "/base/prompt"),
        ({"arms": ARMS, "metric": "beauty"}, "/metric"),
        ({"arms": ARMS, "seeds": [7, 7]}, ""),
        ({"preset": "article"}, ""),
        ({}, ""),
        ({"axes": {"guidance_scale": []}}, "/axes/guidance_scale"),
    ],
)
def test_what_cannot_be_right_is_refused_before_it_is_sent(fake, client, options, pointer):
    for ask in (client.compare, client.plan_comparison):
        with pytest.raises(InvalidRequest) as refused:
            ask("a fox", **options)
        assert [fault.pointer for fault in refused.value.errors] == [pointer]
    assert fake.requests == []


def test_no_seeds_are_refused(client):
    for seeds in (0, [], 257):
        with pytest.raises(InvalidRequest, match="seeds"):
            client.compare("a fox", seeds=seeds, arms=ARMS)


def test_a_plan_begins_nothing(client):
    plan = client.plan_comparison(["a fox", "a cat"], seeds=4, arms=ARMS, base={"num_inference_steps": 10})
    assert (plan.cells, plan.pictures, plan.baseline) == (16, 16, "plain")
    assert plan.evaluations.naive == 16 * 10 * 2
    assert list(client.comparisons.list()) == []
    planned = CompareRequest(prompts=("a fox",), axes={"guidance_scale": (5, 9)}, dry_run=True)
    with pytest.raises(InvalidRequest, match="ask for the plan"):
        client.comparisons.create(planned)
    assert [arm.settings.guidance_scale for arm in client.comparisons.plan(planned).arms] == [5.0, 9.0]


def test_a_comparison_whose_answer_was_lost_is_begun_once(fake):
    keys = []

    def lose_the_first(request):
        answer = fake._answer(request)
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("the answer is lost")
        return answer

    client = through(fake, lose_the_first)
    result = client.compare("a fox", seeds=2, arms=ARMS)
    assert [run.id for run in client.comparisons.list()] == [result.comparison.id]
    assert (len(keys), len(set(keys))) == (2, 1)
    client.compare("a fox", seeds=2, arms=ARMS)
    assert len(list(client.comparisons.list())) == 2


@BOTH
def test_cells_that_fail_leave_the_rest(fake, kind):
    fake.fail_next_comparison("out_of_memory", "too large", cells=[1])
    run = compared(fake, kind, "a fox", seeds=[7, 8], arms=ARMS)
    result = fake.client().comparisons.result(run.id)
    assert [cell.state for cell in result] == ["done", "failed", "done", "done"]
    failed = result["blurry", "a fox", 7]
    with pytest.raises(Exception, match="too large") as raised:
        _ = failed.image
    assert (raised.value.code, failed.problem.code) == ("out_of_memory", "out_of_memory")
    assert list(result.differences("contrast", "blurry")) == [("a fox", 8)]
    assert "4 of 4 cells, 1 failed" in repr(result)
    assert all(verdict.pairs == 1 for verdict in result.verdicts)


@BOTH
def test_one_that_fails_as_a_whole_says_why_and_keeps_what_was_drawn(fake, client, kind):
    fake.fail_next_comparison(detail="the device is gone")
    with pytest.raises(CompareFailed, match="failed at cell 2 of 4: the device is gone") as failed:
        compared(fake, kind, "a fox", seeds=[7, 8], arms=ARMS)
    run = failed.value.comparison
    assert (run.state, failed.value.problem.code) == ("failed", "device_lost")
    partial = client.comparisons.result(run)
    assert [cell.state for cell in partial] == ["done", "done", "waiting", "waiting"]
    assert partial["plain", "a fox", 7].image.seed == 7
    with pytest.raises(NotFound, match="cell 2 has no picture: comparison cmp_1 is failed"):
        _ = partial["plain", "a fox", 8].image
    with pytest.raises(NotFound, match=r"has no file 'sheet.png'; it has nothing yet"):
        partial.sheet()
    assert "<img" not in partial._repr_html_()
    assert [one.id for one in client.comparisons.list(state="failed")] == [run.id]
    assert list(client.comparisons.list(state="succeeded")) == []


def test_one_that_was_cancelled_is_no_result_either(fake):
    def cancelled_meanwhile(request):
        answer = fake._answer(request)
        return httpx.Response(
            answer.status_code,
            text=answer.text.replace('"succeeded"', '"cancelled"'),
            headers={"content-type": answer.headers["content-type"]},
        )

    with pytest.raises(CompareFailed, match=r"comparison cmp_1 was cancelled at cell 2 of 2$") as cancelled:
        through(fake, cancelled_meanwhile).compare("a fox", seeds=1, arms=ARMS)
    assert cancelled.value.problem is None
    copy = pickle.loads(pickle.dumps(cancelled.value))
    assert (str(copy), copy.comparison.id) == (str(cancelled.value), "cmp_1")


def test_cancelling_one_that_has_ended_changes_nothing(client):
    result = client.compare("a fox", seeds=1, arms=ARMS)
    assert client.comparisons.cancel(result.comparison) == result.comparison
    assert client.comparisons.get("cmp_1") == result.comparison


class Interrupted:
    """The fake, whose first streams of events break off after so many bytes."""

    def __init__(self, fake, *lengths):
        self.fake, self.lengths, self.asked = fake, list(lengths), []

    def answer(self, request):
        answer = self.fake._answer(request)
        if not request.url.path.endswith("/events"):
            return answer
        self.asked.append(request.headers.get("last-event-id"))
        if self.lengths:
            return httpx.Response(
                200, content=answer.content[: self.lengths.pop(0)], headers=dict(answer.headers)
            )
        return answer

    def client(self):
        return through(self.fake, self.answer)

    def async_client(self):
        client = self.fake.async_client()
        client._http = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        return client


@BOTH
def test_waiting_goes_on_after_the_last_event_where_the_connection_breaks(fake, kind):
    interrupted = Interrupted(fake, 300, 0, 500)
    told = []
    run = compared(interrupted, kind, "a fox", seeds=[7, 8], arms=ARMS, on_event=told.append)
    assert run.state == "succeeded"
    assert [event.id for event in told] == list(range(1, len(told) + 1))
    assert [event.cell for event in told if event.type == "cell"] == [0, 1, 2, 3]
    assert (told[-1].done, told[-1].total, told[-1].state) == (4, 4, "succeeded")
    assert interrupted.asked[0] is None
    assert len(interrupted.asked) == 4
    assert None not in interrupted.asked[1:]


def test_events_can_be_read_from_any_of_them_on(client):
    run = client.compare("a fox", seeds=1, arms=ARMS).comparison
    events = list(client.comparisons.events(run))
    assert [event.state for event in events if event.type == "state"] == ["queued", "running", "succeeded"]
    assert [event.stage for event in events if event.type == "stage"] == ["drawing", "measuring"]
    assert list(client.comparisons.events(run.id, after=3)) == events[3:]


def test_waiting_ends_when_its_time_is_up_and_the_comparison_goes_on(fake):
    client = Interrupted(fake, *[300] * 1000).client()
    with pytest.raises(Timeout, match="comparison cmp_1 did not end within 30 s; it goes on"):
        client.compare("a fox", arms=ARMS, timeout_seconds=30)
    assert sum(fake.sleeps) == pytest.approx(30)
    assert fake.client().comparisons.wait("cmp_1").state == "succeeded"


def test_files_are_fetched_once_and_saved(fake, client, tmp_path):
    result = client.compare("a fox", seeds=[7], arms={"<b>": {}, "b": {}}, name="Does <i> help?")
    before = len(fake.requests)
    assert result.sheet().pil().size == (16, 8)
    assert result.sheet().save(tmp_path / "sheet").name == "sheet.png"
    page = result.report()
    assert page.startswith("<!doctype html>")
    assert "Does &lt;i&gt; help?" in page
    assert result.report(tmp_path / "out.html").read_text() == page
    assert result.report(tmp_path) == tmp_path / "report.html"
    assert result.markdown().startswith("# Does <i> help?")
    assert [one.path.rsplit("/")[-1] for one in fake.requests[before:]] == [
        "sheet.png",
        "report.html",
        "report.md",
    ]


def test_any_file_and_picture_can_be_had_by_the_id_of_the_run(client, tmp_path):
    result = client.compare("a fox", seeds=[7], arms=ARMS)
    runs = client.comparisons
    saved = runs.download("cmp_1", "comparison.json", tmp_path)
    assert json.loads(saved.read_bytes())["id"] == "cmp_1"
    assert runs.file("cmp_1", "comparison.json") == saved.read_bytes()
    assert runs.image("cmp_1", 1).data == result["blurry", "a fox", 7].image.data
    assert runs.image(result.comparison, result["plain"][0].cell).data == result["plain"][0].image.data
    with pytest.raises(NotFound):
        runs.get("cmp_2")
    with pytest.raises(NotFound, match=r"it has sheet\.png, report\.html"):
        runs.download("cmp_1", "none.png", tmp_path / "none")
    with pytest.raises(NotFound):
        runs.image("cmp_1", 2)
    for name in ("../../loras", "", "a//b"):
        with pytest.raises(InvalidRequest):
            runs.file("cmp_1", name)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def test_a_notebook_shows_conclusion_verdicts_and_sheet(client):
    arms = {"plain": {}, "<script>": {"negative_prompt": "blurry"}}
    result = client.compare("a fox", seeds=[7], arms=arms, metric="luminance", name="<i>")
    shown = result._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;</th>" in shown
    assert "<i>" not in shown
    assert "<b>luminance</b>" in shown
    assert f"{result.verdicts[2].mean_difference:+.3g}" in shown
    assert 'src="data:image/png;base64,' in shown


def test_a_result_as_a_table_has_a_row_a_cell(fake, client):
    pytest.importorskip("pandas")
    fake.fail_next_comparison(cells=[3])
    result = client.compare("a fox", seeds=[7, 2**64 - 1], arms=ARMS)
    table = result.to_pandas()
    assert list(table.columns[:4]) == ["arm", "prompt", "seed", "state"]
    assert set(table.columns[4:]) == {info.metric for info in result.comparison.metrics}
    assert list(table["state"]) == ["done", "done", "done", "failed"]
    assert list(table["seed"]) == [7, 7, 2**64 - 1, 2**64 - 1]
    assert table["contrast"].isna().tolist() == [False, False, False, True]
    assert table.loc[1, "contrast"] == result["blurry", "a fox", 7].measurements["contrast"]


def test_without_pandas_the_error_names_the_extra(client, monkeypatch):
    result = client.compare("a fox", seeds=[7], arms=ARMS)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'darkroom-client\[pandas\]'"):
        result.to_pandas()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_on_a_terminal_shows_how_many_cells_are_done(fake, client, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    fake.fail_next_comparison(cells=[2])
    client.compare("a fox", seeds=2, arms=ARMS, name="does it help?")
    last, rest = terminal.getvalue().split("\r")[-1].split("\n")
    assert last == "does it help?  measuring  [########################]  4/4 cells  1 failed"
    assert rest == ""
    client.compare("a fox", seeds=2, arms=ARMS, on_event=False)
    assert terminal.getvalue().endswith("\n")


def test_the_twins_do_the_same(fake, tmp_path):
    options = {"seeds": [7, 8], "arms": ARMS, "metric": "contrast"}

    async def story():
        async with fake.async_client() as client:
            assert (await client.plan_comparison("a fox", **options)).cells == 4
            run = await client.comparisons.create(compare_request("a fox", options))
            assert run.state == "queued"
            result = await client.comparisons.wait(run, on_event=False)
            again = await client.comparisons.result(run.id)
            assert result.comparison == again.comparison == await client.comparisons.cancel(run)
            assert [one.id async for one in client.comparisons.list()] == [run.id]
            assert [one.cell async for one in client.comparisons.events(run) if one.type == "cell"] == [
                0,
                1,
                2,
                3,
            ]
            cell = result["blurry", "a fox", 8]
            picture = await cell.image()
            assert await cell.image() is picture
            assert (await client.comparisons.image(run, cell.cell)).data == picture.data
            assert "<img" not in result._repr_html_()
            sheet = await result.sheet()
            assert "<img" in result._repr_html_()
            path = await client.comparisons.download(result.comparison, "sheet.png", tmp_path)
            assert path.read_bytes() == sheet.data == await client.comparisons.file(run, "sheet.png")
            assert (await result.report(tmp_path / "a.html")).read_text() == await result.report()
            markdown, page = await result.markdown(), await result.report()
            return result.comparison, picture, sheet, page, markdown, result.differences("contrast", "blurry")

    theirs = asyncio.run(story())
    result = FakeDarkroom().client().compare("a fox", **options)
    ours = (
        result.comparison,
        result["blurry", "a fox", 8].image,
        result.sheet(),
        result.report(),
        result.markdown(),
        result.differences("contrast", "blurry"),
    )
    assert theirs == ours


def test_presets_of_the_fake_use_the_lora_that_it_has(client):
    client.loras.publish("ink", lora())
    result = client.compare(
        "a fox", seeds=2, preset="article", lora=LoraUse(ref="ink:latest", scope="uncond")
    )
    assert result.arms == ("base", "word", "LoRA + word")
    assert [use.ref for use in result["LoRA + word"][0].request.loras] == ["ink@1"]
    assert result["word"][0].request.negative_prompt == "wrong"
    arms = client.plan_comparison("a fox", preset="controlled", lora="ink", placebo="xyz").arms
    assert {arm.settings.negative_prompt for arm in arms} == {None, "", "wrong", "xyz"}
    assert [use.sham for arm in arms for use in arm.settings.loras].count(0) == 1
    assert {use.scope for arm in arms for use in arm.settings.loras} == {"both", "cond", "uncond"}


def test_axes_of_the_fake_are_crossed_or_zipped(client):
    axes = {"guidance_scale": [5, 9], "refiner.denoising_end": [0.5, 0.9]}
    crossed = client.plan_comparison("a fox", axes=axes)
    assert [arm.name for arm in crossed.arms][1] == "guidance_scale=5, refiner.denoising_end=0.9"
    assert len(crossed.arms) == 4
    zipped = client.plan_comparison("a fox", axes=axes, combine="zip")
    assert [(arm.settings.guidance_scale, arm.settings.refiner.denoising_end) for arm in zipped.arms] == [
        (5, 0.5),
        (9, 0.9),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"arms": {"a": {"loras": ["nobody"]}}}, "nobody"),
        ({"arms": [Arm(name="a"), Arm(name="a")]}, "two arms are called 'a'"),
        ({"arms": ARMS, "baseline": "plan"}, "no arm is called 'plan'"),
        ({"axes": {"guidence": [5]}}, "no such field"),
        ({"axes": {"guidance_scale": [5], "scheduler": ["ddim", "lcm"]}, "combine": "zip"}, "zipped"),
    ],
)
def test_the_fake_refuses_what_the_service_would(client, options, told):
    with pytest.raises(InvalidRequest, match=told):
        client.compare("a fox", **options)
    assert list(client.comparisons.list()) == []


def test_the_same_key_with_another_body_is_refused_by_the_fake(fake):
    with fake.client()._http as http:

        def post(prompt):
            body = {"prompts": [prompt], "axes": {"guidance_scale": [5]}}
            return http.post("http://fake/v1/compare", json=body, headers={"Idempotency-Key": "k"})

        first = post("a fox")
        assert (first.status_code, first.headers["location"]) == (202, "/v1/runs/cmp_1")
        assert post("a fox").headers["Idempotent-Replayed"] == "true"
        assert post("a cat").json()["code"] == "idempotency_key_reused"
        events = http.get("http://fake/v1/runs/cmp_1/events?after=2").json()
        assert [event["id"] for event in events][:2] == [3, 4]
