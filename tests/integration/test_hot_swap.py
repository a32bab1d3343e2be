"""LoRAs in the engine: what stock diffusers would draw, branch by branch, and nothing left behind for anybody else."""

import copy
import queue
import random
import resource
from functools import partial

import diffusers
import numpy as np
import pytest
import torch

from adapters import a_lora, arranged, attention_layers, random_adapter
from builders import FOX, an_order, run
from lora_registry import faults
from service.engine import canary, memory, presets
from service.engine.audit import Auditor
from service.engine.conditioning import Conditioner
from service.engine.engine import Engine
from service.engine.loop import StepLoop
from service.engine.loras.stacks import EMPTY, Part, Stacks
from service.engine.orders import Done, Failed, Order
from service.engine.trajectory import Trajectory
from service.errors import SwapFailed

TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    faults.load("")


@torch.inference_mode()
def latents(models, *orders: tuple[Order, dict]) -> list[torch.Tensor]:
    """Of each order's first image, made in one loop; each order comes with its adapters."""
    loop, conditioner = StepLoop(models, memory.PROFILES["24"]), Conditioner(models)
    trajectories = []
    for order, adapters in orders:
        conditionings = partial(conditioner.conditioning, order)
        trajectories.append(Trajectory(order, 0, conditionings, models, Stacks(order.loras, adapters)))
    while active := [trajectory for trajectory in trajectories if not trajectory.finished]:
        for step in loop.advance(active):
            assert step.error is None
    return [trajectory.latents for trajectory in trajectories]


def as_file(adapter, prefix: str = "unet") -> dict[str, torch.Tensor]:
    """The adapter as diffusers writes it."""
    tensors = {}
    for changes in adapter.changes.values():
        for name, change in changes.items():
            up, down = change.pair
            tensors[f"{prefix}.{name}.lora_A.weight"] = down.clone()
            tensors[f"{prefix}.{name}.lora_B.weight"] = up.clone()
    return tensors


@pytest.fixture(scope="module")
def stock():
    """Stock pipelines over weights of their own, into which LoRAs are loaded in the usual way."""
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(presets.POCKET.base, variant="fp16")
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        presets.POCKET.refiner, variant="fp16"
    )
    for pipeline in (base, refiner):
        pipeline.to(torch.float32)
        pipeline.set_progress_bar_config(disable=True)
    return base, refiner


@pytest.fixture
def stock_latents(stock):
    """What they give for an order, with adapters at these weights."""
    base, refiner = stock

    def of(order: Order, *adapters: tuple[dict[str, torch.Tensor], float]) -> torch.Tensor:
        names = [f"a{number}" for number in range(len(adapters))]
        for name, (tensors, _) in zip(names, adapters, strict=True):
            base.load_lora_weights(dict(tensors), adapter_name=name)
        if adapters:
            base.set_adapters(names, [weight for _, weight in adapters])
        generator = torch.Generator("cpu").manual_seed(order.seeds[0])
        shared = {
            "prompt": order.prompt.plain,
            "negative_prompt": order.negative_prompt.plain if order.negative_prompt else None,
            "num_inference_steps": order.num_inference_steps,
            "guidance_scale": order.guidance_scale,
            "generator": generator,
            "output_type": "latent",
        }
        end = order.hand_over.denoising_end if order.hand_over else None
        found = base(denoising_end=end, **shared).images
        if order.hand_over:
            found = refiner(image=found, denoising_start=end, **shared).images
        base.unload_lora_weights()
        return found

    return of


def assert_same(one: torch.Tensor, other: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert (one - other).abs().max().item() <= tolerance


@pytest.mark.parametrize("weight", [1.0, 0.6, -1.0])
@pytest.mark.parametrize("hand_over", [None, 0.5])
def test_a_lora_gives_the_latents_of_stock_diffusers_with_it_loaded(models, stock_latents, weight, hand_over):
    adapter = random_adapter(models, 1)
    order = an_order(FOX, "deformed", loras=(a_lora(adapter, weight),), hand_over=hand_over)
    (ours,) = latents(models, (order, arranged(models, adapter)))
    assert_same(ours, stock_latents(order, (as_file(adapter), weight)))
    assert (
        ours - latents(models, (an_order(FOX, "deformed", hand_over=hand_over), {}))[0]
    ).abs().max() > 0.05


def test_a_stack_gives_the_latents_of_stock_diffusers_with_all_of_them(models, stock_latents):
    one = random_adapter(models, 1)
    half = random_adapter(models, 2, layers=attention_layers(models)[::3], rank=7)
    order = an_order(loras=(a_lora(one, 0.5), a_lora(half, -0.8)))
    (ours,) = latents(models, (order, arranged(models, one, half)))
    assert_same(ours, stock_latents(order, (as_file(one), 0.5), (as_file(half), -0.8)))


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_a_lora_of_a_text_encoder_bends_the_prompt_and_never_the_refiner(models, stock_latents, component):
    adapter = random_adapter(models, 3, component=component, size=0.2)
    order = an_order(FOX, "deformed", loras=(a_lora(adapter, 0.7),), hand_over=0.5)
    (ours,) = latents(models, (order, arranged(models, adapter)))
    # The stock refiner has an encoder of its own here, into which nothing was loaded.
    assert_same(ours, stock_latents(order, (as_file(adapter, component), 0.7)))
    assert (ours - latents(models, (an_order(FOX, "deformed", hand_over=0.5), {}))[0]).abs().max() > 0.01


@torch.inference_mode()
def two_unets(models, order: Order, bent: dict[str, object]) -> torch.Tensor:
    """The guided Euler loop written out with a UNet of its own for each branch: `bent` has the merged ones."""
    conditioning = Conditioner(models).conditioning(order)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(models.scheduler_config)
    scheduler.set_timesteps(order.num_inference_steps)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(order.seeds[0]))
    sample = noise * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, timestep)
        predicted = {}
        for side, branch in (("uncond", conditioning.uncond["base"]), ("cond", conditioning.cond["base"])):
            unet = bent[side](number / order.num_inference_steps)
            predicted[side] = unet(
                scaled,
                timestep,
                encoder_hidden_states=branch.prompt_embeds,
                added_cond_kwargs={"text_embeds": branch.pooled_prompt_embeds, "time_ids": branch.time_ids},
            ).sample
        guided = predicted["uncond"] + order.guidance_scale * (predicted["cond"] - predicted["uncond"])
        sample = scheduler.step(guided, timestep, sample).prev_sample
    return sample


@pytest.fixture
def merged(models):
    """A copy of the base UNet with an adapter merged in, and one without."""

    def of(adapter, weight: float):
        pristine = copy.deepcopy(models.unets["base"])
        bent = copy.deepcopy(pristine)
        layers = dict(bent.named_modules())
        for name, change in adapter.changes["unet"].items():
            layers[name].weight.data += weight * change.delta(layers[name].weight)
        return pristine, bent

    return of


@pytest.mark.parametrize("scope", ["cond", "uncond"])
def test_a_scope_bends_one_guidance_branch_alone(models, merged, scope):
    adapter = random_adapter(models, 4)
    pristine, bent = merged(adapter, 0.9)
    order = an_order(FOX, "deformed", loras=(a_lora(adapter, 0.9, scope=scope),))
    sides = {
        side: (lambda _done, unet=bent if side == scope else pristine: unet) for side in ("cond", "uncond")
    }
    (ours,) = latents(models, (order, arranged(models, adapter)))
    assert_same(ours, two_unets(models, order, sides))


def test_a_window_bends_its_steps_alone(models, merged):
    adapter = random_adapter(models, 5)
    pristine, bent = merged(adapter, 1.0)
    order = an_order(num_inference_steps=8, loras=(a_lora(adapter, start=0.25, end=0.5),))

    def unet(done):
        return bent if 0.25 <= done < 0.5 else pristine

    (ours,) = latents(models, (order, arranged(models, adapter)))
    assert_same(ours, two_unets(models, order, {"cond": unet, "uncond": unet}))


def test_orders_with_different_loras_that_share_a_loop_are_as_if_alone(models):
    adapters = [random_adapter(models, seed) for seed in (6, 7, 8)]
    known = arranged(models, *adapters)
    asked = [
        an_order(FOX, seeds=(1,)),
        an_order(FOX, seeds=(2,), loras=(a_lora(adapters[0]),)),
        an_order("a green star", "blurry", seeds=(3,), loras=(a_lora(adapters[1], 0.5, scope="uncond"),)),
        an_order(FOX, seeds=(4,), loras=(a_lora(adapters[0]), a_lora(adapters[2], -0.5)), hand_over=0.5),
        an_order(FOX, seeds=(5,), num_inference_steps=6, loras=(a_lora(adapters[2], end=0.5),)),
    ]
    alone = [latents(models, (order, known))[0] for order in asked]
    together = latents(models, *((order, known) for order in asked))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other, 2e-4)


def test_two_stacks_that_alternate_cost_one_swap_a_step(models):
    adapter = random_adapter(models, 9)
    order = an_order(num_inference_steps=6, loras=(a_lora(adapter, scope="uncond"),))
    swaps: list[float] = []
    loop = StepLoop(models, memory.PROFILES["24"], observe_swap=swaps.append)
    conditioner = Conditioner(models)
    trajectory = Trajectory(
        order,
        0,
        partial(conditioner.conditioning, order),
        models,
        Stacks(order.loras, arranged(models, adapter)),
    )
    with torch.inference_mode():
        models.weights["unet"].apply(EMPTY)
        while not trajectory.finished:
            loop.advance([trajectory])
        models.weights["unet"].apply(EMPTY)
    assert len(swaps) <= 7


def test_nothing_of_a_request_is_left_for_the_next_one(engine, models):
    golden = run(engine, an_order(FOX, hand_over=0.5)).pictures[0].pixels_HWC
    adapters = [random_adapter(models, 10), random_adapter(models, 11, component="text_encoder_2", size=0.3)]
    known = arranged(models, *adapters)
    bent = an_order(FOX, loras=tuple(a_lora(adapter) for adapter in adapters), hand_over=0.5)
    assert not np.array_equal(pictures(engine, bent, known)[0], golden)
    assert np.array_equal(run(engine, an_order(FOX, hand_over=0.5)).pictures[0].pixels_HWC, golden)


def pictures(engine: Engine, order: Order, adapters: dict) -> list[np.ndarray]:
    events: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit(order, events.put, adapters)
    while True:
        event = events.get(timeout=120)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            return [picture.pixels_HWC for picture in event.pictures]


def test_a_swap_that_fails_ends_its_own_order_and_the_next_picture_is_the_golden_one(engine, models):
    golden = run(engine, an_order(FOX)).pictures[0].pixels_HWC
    adapter = random_adapter(models, 12)
    known = arranged(models, adapter)
    under_lora = pictures(engine, an_order(FOX, loras=(a_lora(adapter),)), known)[0]
    run(engine, an_order(FOX))
    for step in ("swap.plan", "swap.write", "#2", "#5"):
        faults.load(f"{step}=error")
        with pytest.raises(SwapFailed):
            pictures(engine, an_order(FOX, loras=(a_lora(adapter),)), known)
        faults.load("")
        assert np.array_equal(run(engine, an_order(FOX)).pictures[0].pixels_HWC, golden)
    assert np.array_equal(pictures(engine, an_order(FOX, loras=(a_lora(adapter),)), known)[0], under_lora)


def test_a_text_encoder_that_could_not_be_put_back_is_put_back_before_the_next_prompt(engine, models):
    golden = run(engine, an_order(FOX)).pictures[0].pixels_HWC
    adapter = random_adapter(models, 13, component="text_encoder", size=0.3)
    known = arranged(models, adapter)
    failed = 0
    for step in range(1, 30):
        # A prompt that was not encoded yet, so that nothing comes out of the cache.
        order = an_order(f"{FOX}, number {step}", loras=(a_lora(adapter),))
        faults.load(f"#{step}=error")
        try:
            pictures(engine, order, known)
        except SwapFailed:
            failed += 1
        faults.load("")
        again = Conditioner(models)
        assert np.array_equal(run(engine, an_order(FOX)).pictures[0].pixels_HWC, golden)
        embeds = engine.run(lambda again=again: again.conditioning(an_order(FOX))).result()
        assert models.weights["text_encoder"].in_force == EMPTY
        assert torch.isfinite(embeds.cond["base"].prompt_embeds).all()
    assert failed >= 3


def test_ten_thousand_swaps_mixtures_and_failures_change_no_byte_of_the_base(engine, models):
    canary_before = canary.picture(engine).pictures[0].pixels_HWC
    draw = random.Random(20261124)
    some = attention_layers(models)
    convolutions = [name for name in models.layout["unet"] if ".conv" in name]
    adapters = [random_adapter(models, 100 + n, rank=draw.choice((1, 4, 8)), size=0.05) for n in range(8)]
    adapters += [random_adapter(models, 200 + n, layers=draw.sample(some, 9), size=0.05) for n in range(4)]
    adapters.append(random_adapter(models, 300, layers=convolutions[:6], size=0.05))
    known = list(arranged(models, *adapters).values())
    blocks = sorted(name for name in models.weights["unet"].blocks if name.count(".") == 1)

    def stack() -> tuple[Part, ...]:
        return tuple(
            Part(
                adapter.digest,
                draw.uniform(-2, 2),
                ((draw.choice(blocks), draw.uniform(-1, 1)),) if draw.random() < 0.2 else (),
                adapter,
            )
            for adapter in draw.sample(known, draw.choice((0, 1, 1, 1, 2, 3, 8)))
        )

    def swap(count: int) -> int:
        weights, failed = models.weights["unet"], 0
        for _ in range(count):
            if draw.random() < 0.1:
                faults.load(f"#{draw.randint(1, 30)}=error")
            before = weights.in_force
            try:
                weights.apply(stack())
            except SwapFailed:
                failed += 1
                assert weights.in_force == before
            faults.load("")
        assert weights.unsound() == []
        return failed

    auditor = engine.run(lambda: Auditor(models)).result()
    engine.run(lambda: swap(500)).result()
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert engine.run(lambda: swap(9500)).result() > 100
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
    assert engine.run(auditor.inspect).result().sound
    assert np.array_equal(canary.picture(engine).pictures[0].pixels_HWC, canary_before)
    assert grown_kib < 20 * 1024
