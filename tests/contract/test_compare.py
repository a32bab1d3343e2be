"""What a comparison promises, asked over HTTP of the whole service on the pocket model."""

import contextlib
import io
import threading
from collections import Counter

import numpy as np
import pytest

from compared import PROMPTS, asked, cells_of, compared, generated, pixels_of, waited_for
from contract.test_loras_in_pictures import peft_file
from in_process import Served
from service.engine import engine as engine_module

INK = {"ref": "ink"}
SWEEP = {"refiner.denoising_end": [0.6, 0.7, 0.8, 0.9, 1.0]}


@pytest.fixture
def studio(serve, tmp_path, models) -> Served:
    """A service of its own data, with two LoRAs."""
    service = serve(data=tmp_path, training="off", audit_seconds=0)
    registry = service.components.loras.registry()
    for number, name in enumerate(("ink", "oil")):
        registry.publish(name, io.BytesIO(peft_file(models, number + 1)))
    return service


@contextlib.contextmanager
def counted_rows(models):
    """Rows that each UNet evaluates inside the block."""
    rows: Counter[str] = Counter()
    hooks = [
        unet.register_forward_pre_hook(
            lambda _unet, inputs, name=name: rows.update({name: len(inputs[0])}), prepend=True
        )
        for name, unet in models.unets.items()
    ]
    yield rows
    for hook in hooks:
        hook.remove()


def test_every_cell_is_the_picture_that_its_request_gives_by_itself(studio):
    run = compared(
        studio, arms=[{"name": "calm"}], preset="controlled", lora=INK, prompts=PROMPTS[:1], seeds=[1]
    )
    assert run["state"] == "succeeded"
    assert len(run["cells"]) == 10
    for cell in run["cells"]:
        assert np.array_equal(pixels_of(studio, cell), generated(studio, cell["request"])), cell["arm"]


def test_a_sweep_of_hand_overs_makes_common_steps_once(studio, models):
    plan = asked(studio, 200, axes=SWEEP, base={"num_inference_steps": 50}, dry_run=True)
    assert plan["evaluations"]["planned"] / plan["evaluations"]["naive"] <= 0.45
    with counted_rows(models) as rows:
        run = compared(studio, axes=SWEEP, base={"num_inference_steps": 10}, prompts=PROMPTS[:1])
    assert rows.total() == run["plan"]["evaluations"]["planned"] < 0.45 * run["plan"]["evaluations"]["naive"]
    assert sum(cell["evaluations"] for cell in run["cells"]) == rows.total()
    for cell in run["cells"]:
        assert np.array_equal(pixels_of(studio, cell), generated(studio, cell["request"])), cell["arm"]


def test_identical_arms_are_drawn_once_and_differ_by_nothing(studio, models):
    arms = [{"name": "one"}, {"name": "other"}, {"name": "as by default", "set": {"scheduler": "euler"}}]
    with counted_rows(models) as rows:
        run = compared(studio, arms=arms, metric="sharpness")
    once = 2 * 2 * 4 * 2  # prompts, seeds, steps, rows
    assert (run["plan"]["cells"], run["plan"]["pictures"]) == (12, 4)
    assert rows.total() == run["plan"]["evaluations"]["planned"] == once
    assert {verdict["outcome"] for verdict in run["verdicts"]} == {"identical"}
    for verdict in run["verdicts"]:
        assert verdict["mean_difference"] == {"ssim": 1.0, "psnr": 100.0}.get(verdict["metric"], 0.0)
    other = cells_of(run, "other")[0]
    assert other["same_as"] == cells_of(run, "one")[0]["index"]
    assert other["pixels_digest"] == cells_of(run, "one")[0]["pixels_digest"]


def test_each_text_is_encoded_once(studio, monkeypatch):
    from service.engine import conditioning

    texts: Counter[str] = Counter()
    weighted = conditioning._weighted

    def counted(encoder, prompt, tokens):
        texts[prompt.plain] += 1
        return weighted(encoder, prompt, tokens)

    monkeypatch.setattr(conditioning, "_weighted", counted)
    prompts = ["a red ring on a white background", "a blue ring on a white background"]
    compared(
        studio,
        prompts=prompts,
        arms=[{"name": f"{scale}", "set": {"guidance_scale": scale}} for scale in (2, 5, 9)],
        base={"negative_prompt": "washed out, and once only"},
        adherence=True,
    )
    # Once for each of the two encoders.
    assert texts == dict.fromkeys([*prompts, "washed out, and once only"], 2)


def test_cells_are_grouped_by_stack_so_that_stacks_swap_once_each(studio):
    def swaps() -> float:
        return studio.metric("lora_activation_seconds_count", tier="device")

    before = swaps()
    arms = [
        {"name": f"{ref} at {scale}", "set": {"loras": [{"ref": ref}], "guidance_scale": scale}}
        for scale in (3, 7)
        for ref in ("ink", "oil")
    ]
    run = compared(studio, arms=[{"name": "none"}, *arms])
    assert run["plan"]["swaps"] == 2
    assert swaps() - before == 2


def test_scores_want_the_base_back_after_each_stack_and_the_plan_says_so(studio):
    before = studio.metric("lora_activation_seconds_count", tier="device")
    run = compared(
        studio,
        arms=[{"name": ref, "set": {"loras": [{"ref": ref}]}} for ref in ("ink", "oil")],
        adherence=True,
    )
    assert run["plan"]["swaps"] == 4
    assert studio.metric("lora_activation_seconds_count", tier="device") - before == 4
    assert all("prompt_adherence" in cell["measurements"] for cell in run["cells"])
    assert run["plan"]["evaluations"]["measuring"] == 8 * 8


def test_pictures_are_the_same_to_the_bit_while_others_are_served(studio):
    arms = [{"name": "plain"}, {"name": "ink", "set": {"loras": [INK]}}]
    alone = compared(studio, arms=arms)
    leaving = threading.Event()

    def keep_busy() -> None:
        while not leaving.is_set():
            request = {"prompt": "a fox", "num_inference_steps": 6, "num_images": 2}
            studio.http.post("/v1/generate", json=request)

    other = threading.Thread(target=keep_busy)
    other.start()
    beside = compared(studio, arms=arms)
    leaving.set()
    other.join()
    assert [c["pixels_digest"] for c in beside["cells"]] == [c["pixels_digest"] for c in alone["cells"]]


def test_a_cell_that_fails_says_why_and_the_others_go_on(studio, monkeypatch):
    defect = engine_module.defect

    def broken(pixels, latents):
        return "nan" if float(latents.mean()) == broken.mean else defect(pixels, latents)

    broken.mean = None
    keep = engine_module.Work.keep

    def watched(work, picture):
        keep(work, picture)

    monkeypatch.setattr(engine_module.Work, "keep", watched)
    # The arm that is to fail is told by its number of steps.
    decode = engine_module.Engine._decode

    def decoded(engine, group):
        for _, trajectory in group:
            if trajectory.denoising_steps == 5 and trajectory.seed == 2:
                broken.mean = float(trajectory.latents.mean())
        decode(engine, group)

    monkeypatch.setattr(engine_module, "defect", broken)
    monkeypatch.setattr(engine_module.Engine, "_decode", decoded)
    run = compared(
        studio,
        arms=[{"name": "four"}, {"name": "five", "set": {"num_inference_steps": 5}}],
        prompts=PROMPTS[:1],
        metric="contrast",
    )
    assert run["state"] == "succeeded"
    states = {(cell["arm"], cell["seed"]): cell["state"] for cell in run["cells"]}
    assert states == {("four", 1): "done", ("four", 2): "done", ("five", 1): "done", ("five", 2): "failed"}
    (failed,) = [cell for cell in run["cells"] if cell["state"] == "failed"]
    assert failed["problem"]["code"] == "unusable_image"
    assert "seed 2" in failed["problem"]["detail"]
    assert next(v for v in run["verdicts"] if v["decides"])["pairs"] == 1
    assert any("1 of 4 cells failed" in warning for warning in run["warnings"])


def test_where_every_cell_fails_the_comparison_has_failed(studio, monkeypatch):
    monkeypatch.setattr(engine_module, "defect", lambda _pixels, _latents: "black")
    run = compared(studio, arms=[{"name": "one"}])
    assert run["state"] == "failed"
    assert "no cell could be drawn" in run["problem"]["detail"]


def test_cancelled_it_stops_soon_and_keeps_what_is_drawn(studio):
    made = asked(studio, arms=[{"name": "slow"}], base={"num_inference_steps": 20}, seeds={"count": 40})
    waited_for(studio, made["id"], cells=3)
    studio.http.delete(f"/v1/runs/{made['id']}")
    run = waited_for(studio, made["id"])
    assert run["state"] == "cancelled"
    assert 3 <= run["done"] < 40
    done = [cell for cell in run["cells"] if cell["state"] == "done"]
    assert len(done) == run["done"]
    assert pixels_of(studio, done[-1]).shape == (64, 64, 3)
    assert "sheet.png" in [file["name"] for file in run["files"]]
    again = studio.http.delete(f"/v1/runs/{made['id']}")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")


def test_what_is_left_behind_goes_on_with_the_next_start(serve, tmp_path):
    first = serve(data=tmp_path, training="off")
    made = asked(
        first, arms=[{"name": "slow"}], base={"num_inference_steps": 10}, seeds={"count": 6}, adherence=True
    )
    before = waited_for(first, made["id"], cells=4)
    first.components.close()
    left = {cell["index"]: cell for cell in before["cells"] if cell["state"] == "done"}
    second = serve(data=tmp_path, training="off")
    run = waited_for(second, made["id"])
    assert (run["state"], run["attempts"], run["done"]) == ("succeeded", 2, 12)
    for index, cell in left.items():
        assert run["cells"][index]["pixels_digest"] == cell["pixels_digest"]
    assert all("prompt_adherence" in cell["measurements"] for cell in run["cells"])


def test_a_lora_that_is_deleted_before_it_is_drawn_still_counts(studio, monkeypatch):
    arms = [{"name": "plain"}, {"name": "ink", "set": {"loras": [INK]}}]
    expected = compared(studio, arms=arms, prompts=PROMPTS[:1])
    runner = studio.components._comparing._runner
    claimed = threading.Event()
    held = runner._claimed
    monkeypatch.setattr(runner, "_claimed", lambda: held() if claimed.is_set() else None)
    made = asked(studio, arms=arms, prompts=PROMPTS[:1])
    assert studio.http.delete("/v1/loras/ink/versions/1").status_code == 204
    asked(studio, 422, arms=arms)
    claimed.set()
    runner.wake()
    run = waited_for(studio, made["id"])
    assert [c["pixels_digest"] for c in run["cells"]] == [c["pixels_digest"] for c in expected["cells"]]
    assert cells_of(run, "ink")[0]["receipt"]["loras"][0]["ref"] == "ink@1"


def test_a_picture_of_another_size_has_no_distance_and_everything_else(studio):
    run = compared(
        studio, arms=[{"name": "square"}, {"name": "wide", "set": {"width": 96}}], metric="luminance"
    )
    wide = cells_of(run, "wide")
    assert all(not {"ssim", "psnr", "perceptual_distance"} & cell["measurements"].keys() for cell in wide)
    assert all("sharpness" in cell["measurements"] for cell in wide)
    outcomes = {verdict["metric"]: verdict["outcome"] for verdict in run["verdicts"]}
    assert outcomes["ssim"] == outcomes["psnr"] == outcomes["perceptual_distance"] == "absent"
    assert outcomes["luminance"] == "too_few"


def test_more_than_a_comparison_may_ask_for_is_refused_with_what_it_costs(serve, tmp_path):
    service = serve(data=tmp_path, training="off", compare_max_cells=20, compare_max_seconds=5)
    many = asked(service, 422, arms=[{"name": "a"}], seeds={"count": 11})
    assert many["code"] == "compare_too_large"
    assert "22 cells (1 arms, 2 prompts, 11 seeds)" in many["detail"]
    service.engine.costs.learn("base", 1, 1.0)
    long = asked(service, 422, arms=[{"name": "a"}])
    assert "UNet evaluations and about" in long["detail"]
    plan = asked(service, 200, arms=[{"name": "a"}], dry_run=True)
    assert plan["fits"] is False
    assert plan["estimated_seconds"] > 5
    assert service.http.get("/v1/runs").json()["items"] == []


def test_a_dry_run_begins_nothing(studio):
    plan = asked(studio, 200, arms=[{"name": "a"}, {"name": "b", "set": {"loras": [INK]}}], dry_run=True)
    assert (plan["cells"], plan["pictures"], plan["fits"]) == (8, 8, True)
    assert plan["arms"][1]["settings"]["loras"][0]["ref"] == "ink@1"
    assert plan["estimated_seconds"] > 0
    assert studio.http.get("/v1/runs").json()["items"] == []


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        (
            {"arms": [{"name": "a", "set": {"guidence_scale": 5}}]},
            "invalid_request",
            "/arms/0/set/guidence_scale",
        ),
        (
            {"arms": [{"name": "a", "set": {"loras": [{"ref": "none"}]}}]},
            "unknown_lora",
            "/arms/0/set/loras/0/ref",
        ),
        (
            {"arms": [{"name": "a"}], "base": {"loras": [{"ref": "none"}]}},
            "unknown_lora",
            "/base/loras/0/ref",
        ),
        ({"preset": "article", "lora": {"ref": "none"}}, "unknown_lora", "/lora"),
        ({"arms": [{"name": "a"}], "prompts": ["a fox", "a (fox"]}, "invalid_prompt", "/prompts/1"),
        ({"arms": [{"name": "a", "prompt": "({prompt}"}]}, "invalid_prompt", "/arms/0/prompt"),
        (
            {"arms": [{"name": "a", "set": {"negative_prompt": "(bad"}}]},
            "invalid_prompt",
            "/arms/0/set/negative_prompt",
        ),
        (
            {"arms": [{"name": "a", "set": {"scheduler": "lcm"}}], "base": {"num_inference_steps": 80}},
            "invalid_option",
            "/base/num_inference_steps",
        ),
        ({"arms": [{"name": "a"}], "metric": "clip_score"}, "invalid_option", "/metric"),
        ({"arms": [{"name": "a"}], "metric": "prompt_adherence"}, "invalid_option", "/metric"),
        ({"arms": [{"name": "a"}], "seeds": []}, "invalid_request", "/seeds"),
        ({"arms": [{"name": "a"}], "baseline": "b"}, "invalid_option", "/baseline"),
        ({"axes": {"guidance_scale": []}}, "invalid_request", "/axes/guidance_scale"),
    ],
)
def test_what_cannot_be_drawn_is_refused_where_it_stands_and_nothing_is_begun(service, fields, code, pointer):
    before = service.metric("comparisons_total", state="queued")
    refused = asked(service, 422, **fields)
    assert refused["code"] == code
    assert refused["errors"][0]["pointer"].startswith(pointer)
    assert service.metric("comparisons_total", state="queued") == before


def test_an_arm_that_cannot_be_drawn_does_not_take_the_others_with_it(studio):
    long = "fox " * 900  # within the characters, beyond the tokens
    for prompts in ([long, PROMPTS[0]], [PROMPTS[0], long]):
        run = compared(
            studio, arms=[{"name": "plain"}, {"name": "calm", "set": {"guidance_scale": 2}}], prompts=prompts
        )
        states = {(cell["prompt"] == long, cell["state"]) for cell in run["cells"]}
        assert states == {(True, "failed"), (False, "done")}
        assert run["cells"][0 if prompts[0] == long else -1]["problem"]["code"] == "invalid_prompt"


def test_one_picture_of_two_prompts_is_scored_by_each(studio):
    arms = [{"name": "as it is"}, {"name": "with more", "prompt": "{prompt} on a blue background"}]
    prompts = ["a big red circle", "a big red circle on a blue background"]
    run = compared(studio, arms=arms, prompts=prompts, seeds=[1], adherence=True)
    said_less, said_all = cells_of(run, "with more")[0], cells_of(run, "as it is")[1]
    assert said_less["pixels_digest"] == said_all["pixels_digest"]
    scores = [cell["measurements"]["prompt_adherence"] for cell in (said_less, said_all)]
    assert scores[0] != scores[1]
    # Four cells, three pictures, one of them scored twice.
    assert (run["plan"]["pictures"], run["plan"]["evaluations"]["measuring"]) == (3, 4 * 8)


def test_arms_that_tell_the_model_other_sizes_have_the_same_judge(studio, engine):
    from dataclasses import replace

    from builders import an_order, run
    from service.engine.prompts import parse

    order = an_order(apart=True)
    finished = run(engine, order).snapshot
    asked = replace(order, start=finished, question=parse(PROMPTS[0]))
    told = replace(asked, original_size=(512, 512), crops_coords_top_left=(8, 8), target_size=(32, 32))
    assert run(engine, told).adherence == run(engine, asked).adherence


def test_prompts_that_mean_the_same_are_refused(service):
    refused = asked(service, 422, arms=[{"name": "a"}], prompts=["a fox", "(a fox)1.0"])
    assert refused["errors"][0]["pointer"] == "/prompts/1"
    own = [{"name": "a"}, {"name": "b", "prompt": "a crow"}]
    refused = asked(service, 422, arms=own)
    assert refused["errors"][0]["pointer"] == "/arms/1/prompt"


def test_a_preset_is_refused_where_it_means_nothing(service):
    preset = {"preset": "controlled", "lora": INK}
    refused = asked(service, 422, **preset, base={"guidance_scale": 1})
    assert refused["errors"][0]["pointer"] == "/base/guidance_scale"
