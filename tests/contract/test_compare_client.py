"""Comparisons through the real client, on the real service and the pocket model."""

import asyncio
import io
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Pictures
from starlette.testclient import TestClient

from darkroom import AsyncDarkroom, CompareFailed, Darkroom, InvalidRequest, NotFound
from darkroom.types import CompareRequest
from in_process import URL, Served, pixels
from service.engine import engine as engine_module

PROMPTS = ("a big red circle on a blue background", "a small green star on a white background")
QUICK = {"num_inference_steps": 4, "guidance_scale": 5}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inked": {"loras": ["ink"], "prompt": "{prompt}, in ink"},
}
ASKED: dict[str, Any] = {"seeds": (1, 2), "base": QUICK, "adherence": False}
SLOW: dict[str, Any] = {
    "seeds": 20,
    "base": {"num_inference_steps": 100, "width": 128, "height": 128},
    "arms": {"slow": {}},
    "adherence": False,
}


@pytest.fixture(scope="module")
def client(service: Served) -> Darkroom:
    return Darkroom(http_client=TestClient(service.edge, base_url=URL), max_retries=0)


@pytest.fixture(scope="module")
def heard() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def result(client, heard):
    """A comparison of two arms and of two values of an axis, and the events that came meanwhile."""
    return client.compare(
        PROMPTS,
        arms=ARMS,
        axes={"guidance_scale": [3]},
        metric="contrast",
        name="Ink",
        on_event=heard.append,
        **ASKED,
    )


def refused(call, *arguments: Any, **options: Any):
    with pytest.raises(InvalidRequest) as caught:
        call(*arguments, **options)
    return caught.value


def test_the_result_has_a_cell_for_every_arm_prompt_and_seed(result):
    assert (result.state, result.arms, result.prompts, result.seeds) == (
        "succeeded",
        ("plain", "inked", "guidance_scale=3"),
        PROMPTS,
        (1, 2),
    )
    assert len(result) == 12
    assert {cell.state for cell in result} == {"done"}
    assert repr(result).endswith("succeeded: 3 arms × 2 prompts × 2 seeds, 12 of 12 cells>")
    cell = result["inked", PROMPTS[1], 2]
    assert cell.request.prompt == f"{PROMPTS[1]}, in ink"
    assert cell.receipt.loras[0].ref == "ink@1"
    with pytest.raises(KeyError, match="did you mean 'inked'"):
        result["ink", PROMPTS[0], 1]


def test_events_tell_of_each_stage_and_of_each_cell_once(result, heard):
    assert [event.id for event in heard] == list(range(1, len(heard) + 1))
    assert [event.state for event in heard if event.type == "state"] == ["queued", "running", "succeeded"]
    assert [event.stage for event in heard if event.type == "stage"] == ["drawing", "measuring", "done"]
    cells = [event for event in heard if event.type == "cell"]
    assert sorted(event.cell for event in cells) == list(range(12))
    assert [event.done for event in cells] == list(range(1, 13))


def test_each_cell_is_to_the_byte_the_file_that_its_request_gives(client, result):
    for cell in result:
        assert cell.image.data == client.generate_request(cell.request).image.data


def test_cells_have_equal_digests_where_their_pictures_are_equal_and_nowhere_else(client, result):
    again = client.compare(
        PROMPTS[0], arms={"plain": {}, "same": {"guidance_scale": 5}}, on_event=False, **ASKED
    )
    cells = [*result, *again]
    digests = {cell.cell.pixels_digest for cell in cells}
    pictures = {pixels(cell.image.data).tobytes() for cell in cells}
    pairs = {(cell.cell.pixels_digest, pixels(cell.image.data).tobytes()) for cell in cells}
    assert len(digests) == len(pictures) == len(pairs) == 12
    assert again["same", PROMPTS[0], 1].cell.same_as == again["plain", PROMPTS[0], 1].cell.index


def test_a_preset_compares_without_and_with_the_word_and_the_lora(client):
    found = client.compare(PROMPTS[0], preset="article", lora="ink", word="blurry", on_event=False, **ASKED)
    assert found.arms == ("base", "word", "LoRA + word")
    assert [cell.request.negative_prompt for cell in found] == [None, "blurry", "blurry"] * 2
    assert [len(cell.request.loras) for cell in found] == [0, 0, 1] * 2


def test_sheet_reports_and_json_tell_of_the_same_comparison(client, result, tmp_path):
    assert Pictures.open(io.BytesIO(result.sheet().data)).width > 3 * 64
    page = result.report(tmp_path / "out.html").read_text()
    assert page == result.report()
    told = json.loads(client.comparisons.file(result.comparison, "comparison.json"))
    for name in ("plain", "inked"):
        assert name in page
        assert name in result.markdown()
    assert "# Ink" in result.markdown()
    assert told["id"] == result.comparison.id
    assert told["conclusion"] == result.conclusion != ""
    assert result._repr_html_().count("<img") == 1


def test_verdicts_are_about_every_arm_but_the_baseline(result):
    deciding = [verdict for verdict in result.verdicts if verdict.decides]
    assert [(verdict.arm, verdict.metric, verdict.pairs) for verdict in deciding] == [
        ("inked", "contrast", 4),
        ("guidance_scale=3", "contrast", 4),
    ]
    differences = result.differences("contrast", "inked")
    assert deciding[0].mean_difference == pytest.approx(np.mean(list(differences.values())))


def test_a_table_has_a_row_for_each_cell(result):
    frame = result.to_pandas()
    assert list(frame["arm"]) == [cell.arm for cell in result]
    assert frame["contrast"].tolist() == [cell.measurements["contrast"] for cell in result]
    assert frame[frame["arm"] == "plain"]["ssim"].isna().all()
    assert frame[frame["arm"] != "plain"]["ssim"].notna().all()


def test_a_plan_says_what_it_would_come_to_and_begins_nothing(client):
    before = [run.id for run in client.comparisons.list()]
    plan = client.plan_comparison(PROMPTS, axes={"guidance_scale": [3, 5, 5.0001]}, seeds=2, base=QUICK)
    assert [arm.name for arm in plan.arms] == [
        "guidance_scale=3",
        "guidance_scale=5",
        "guidance_scale=5.0001",
    ]
    assert (plan.cells, plan.pictures, plan.fits) == (12, 12, True)
    assert plan.evaluations.measuring > 0
    assert [run.id for run in client.comparisons.list()] == before


def test_a_comparison_that_another_client_began_is_followed_by_its_id(service, result):
    other = Darkroom(http_client=TestClient(service.edge, base_url=URL), max_retries=0)
    assert result.comparison.id in [run.id for run in other.comparisons.list(state="succeeded")]
    seen: list[Any] = []
    again = other.comparisons.wait(result.comparison.id, on_event=seen.append)
    assert again.comparison == result.comparison
    assert seen[-1].state == "succeeded"
    last = list(other.comparisons.events(result.comparison.id, after=seen[-3].id))
    assert [event.id for event in last] == [event.id for event in seen[-2:]]


def test_who_waits_hears_of_a_cancel_and_what_was_drawn_is_kept(client, service):
    run = client.comparisons.create(CompareRequest.model_validate(_request(**SLOW)))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            Darkroom(http_client=TestClient(service.edge, base_url=URL)).comparisons.wait(run, on_event=False)
        except CompareFailed as failed:
            caught.append(failed)

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.comparisons.cancel(run)
    waiting.join(60)
    (failed,) = caught
    assert isinstance(failed, CompareFailed)
    assert (failed.comparison.state, failed.problem) == ("cancelled", None)
    assert str(failed).startswith(f"comparison {run.id} was cancelled at cell")
    kept = client.comparisons.result(run)
    assert kept.state == "cancelled"
    assert client.comparisons.cancel(run).state == "cancelled"
    with pytest.raises(NotFound, match="has no picture"):
        _ = next(cell for cell in kept if cell.state == "waiting").image


def _request(arms: dict[str, Any], base: Any, seeds: int, adherence: bool) -> dict[str, Any]:
    named = [{"name": name, "set": settings} for name, settings in arms.items()]
    seeds_asked = {"count": seeds}
    return {"prompts": PROMPTS, "arms": named, "base": base, "seeds": seeds_asked, "adherence": adherence}


def test_one_that_fails_as_a_whole_says_why(client, monkeypatch):
    monkeypatch.setattr(engine_module, "defect", lambda _pixels, _latents: "black")
    with pytest.raises(
        CompareFailed, match="no cell could be drawn; the first one: the image of seed 1"
    ) as caught:
        client.compare(PROMPTS[0], arms={"plain": {}}, on_event=False, **ASKED)
    assert caught.value.problem.code == "unusable_image"
    cells = list(client.comparisons.result(caught.value.comparison))
    alone = refused(client.generate_request, cells[0].request)
    of_the_cell = refused(lambda: cells[0].image)
    assert of_the_cell.code == alone.code == "unusable_image"
    assert of_the_cell.problem.detail == alone.problem.detail
    assert (of_the_cell.status, of_the_cell.problem.type) == (alone.status, alone.problem.type)


@pytest.mark.parametrize(
    ("fields", "pointer", "said"),
    [
        (
            {"arms": {"a": {"guidence_scale": 5}}},
            "/arms/0/set/guidence_scale",
            "did you mean 'guidance_scale'",
        ),
        ({"arms": {"a": {}}, "base": {"steps": 4}}, "/base/steps", "no such field$"),
        ({"arms": {"a": {}}, "seeds": 0}, "/seeds/count", "greater than or equal to 1"),
        ({"arms": {"a": {}}, "seeds": ()}, "/seeds", "The list should have at least 1 item, not 0"),
        ({"arms": {"a": {}}, "seeds": (-1,)}, "/seeds/0", "greater than or equal to 0"),
        ({}, "", "nothing to compare"),
        ({"preset": "article"}, "", "needs a `lora`"),
        ({"arms": {"a": {"loras": ["none"]}}}, "/arms/0/set/loras/0/ref", "no LoRA is called 'none'"),
        ({"preset": "article", "lora": "none"}, "/lora/ref", "no LoRA is called 'none'"),
        ({"preset": "article", "lora": "ink", "word": "(x"}, "/word", "never closed"),
        ({"axes": {"guidance": [5]}}, "/axes/guidance", "did you mean 'guidance_scale'"),
        ({"axes": {"scheduler": ["magic"]}}, "/axes/scheduler/0", "euler"),
        ({"arms": {"a": {}}, "metric": "clip_score"}, "/metric", "DARKROOM_CLIP"),
        ({"arms": {"a": {}}, "baseline": "b"}, "/baseline", "no arm is called 'b'"),
    ],
)
def test_what_cannot_be_compared_is_an_invalid_request_that_points_at_the_fault(
    client, fields, pointer, said
):
    import re

    for ask in (client.compare, client.plan_comparison):
        error = refused(ask, PROMPTS, **{**ASKED, **fields})
        assert error.status == 422
        (fault,) = error.errors
        assert fault.pointer == pointer
        assert re.search(said, fault.message)


def test_the_client_refuses_what_the_service_would_in_the_same_words(client, service):
    bad = {"prompts": PROMPTS, "arms": [{"name": "a", "set": {"prompt": "a fox"}}], "seeds": [-1]}
    answer = service.http.post("/v1/compare", json=bad).json()
    error = refused(client.compare, PROMPTS, arms={"a": {"width": 100}}, seeds=(-1,))
    assert answer["detail"].startswith("/seeds/0: ")
    assert error.problem.detail.startswith("/seeds/0: Input should be greater than or equal to 0")
    assert {fault["message"] for fault in answer["errors"]} == {
        "Input should be greater than or equal to 0",
        "no such field",
    }


def test_seeds_as_a_number_are_told_how_to_be_written(service):
    answer = service.http.post(
        "/v1/compare", json={"prompts": ["a"], "arms": [{"name": "a"}], "seeds": 8}
    ).json()
    assert answer["detail"] == '/seeds: a list of seeds is required, or how many: {"count": 8}'


def test_too_large_a_comparison_is_refused_with_what_it_would_cost(client):
    error = refused(client.compare, PROMPTS, arms={"a": {}, "b": {"width": 96}}, seeds=256, base=QUICK)
    assert error.code == "compare_too_large"
    assert "1024 cells (2 arms, 2 prompts, 256 seeds) and 1000 are allowed" in str(error)
    assert client.plan_comparison(PROMPTS, arms={"a": {}, "b": {"width": 96}}, seeds=256).fits is False


def test_the_asynchronous_client_sees_the_same(service, result, tmp_path):
    async def work(client: AsyncDarkroom) -> None:
        heard: list[Any] = []
        found = await client.compare(PROMPTS[0], arms=ARMS, metric="contrast", on_event=heard.append, **ASKED)
        assert (found.arms, found.state, len(found)) == (("plain", "inked"), "succeeded", 4)
        assert sum(event.type == "cell" for event in heard) == 4
        for cell in found:
            same = result[cell.arm, cell.prompt, cell.seed].cell
            assert cell.cell.pixels_digest == same.pixels_digest
        cell = found["inked", PROMPTS[0], 2]
        image, alone = await cell.image(), (await client.generate_request(cell.request)).image
        assert image.data == alone.data
        assert np.array_equal(pixels(image.data), pixels(result["inked", PROMPTS[0], 2].image.data))
        assert (await found.sheet()).media_type == "image/png"
        assert (await found.report(tmp_path)).name == "report.html"
        assert "inked" in await found.markdown()
        assert list(found.to_pandas()["seed"]) == [1, 1, 2, 2]
        plan = await client.plan_comparison(PROMPTS[0], arms=ARMS, **ASKED)
        assert (plan.cells, plan.fits) == (4, True)
        again = await client.comparisons.wait(found.comparison.id, on_event=False)
        assert again.comparison == found.comparison
        slow = await client.comparisons.create(CompareRequest.model_validate(_request(**SLOW)))
        waiting = asyncio.create_task(client.comparisons.wait(slow, on_event=False))
        await asyncio.sleep(0)
        await client.comparisons.cancel(slow)
        with pytest.raises(CompareFailed, match="was cancelled"):
            await waiting
        with pytest.raises(InvalidRequest) as refused:
            await client.compare(PROMPTS[0], arms={"a": {"loras": ["none"]}}, **ASKED)
        assert refused.value.errors[0].pointer == "/arms/0/set/loras/0/ref"

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.edge)) as http:
            await work(AsyncDarkroom(URL, http_client=http, max_retries=0))

    asyncio.run(main())
