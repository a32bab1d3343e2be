"""Training: every stage learns, a stopped one goes on as if it had not stopped, the result loads as SDXL."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from service.pocket import WEIGHTS
from service.pocket.base import base_errors, draw_batch, spread_timesteps
from service.pocket.config import Config, Pace
from service.pocket.dataset import load_dataset
from service.pocket.networks import BASE_TIME_IDS, new_text_encoders, new_unet, noise_levels
from service.pocket.render import render
from service.pocket.team import Team
from service.pocket.tokenizers import load_tokenizers, token_ids
from service.pocket.train import GateClosed, check_round_trip, run_stages, shapes_kept
from service.pocket.trainer import Trainer, learning_rate
from service.pocket.vae import latent_statistics, new_vae, round_trip, stretch_latents, vae_loss
from service.pocket.warm_start import warm_start_text_encoder, warm_start_unet
from service.pocket.world import sample_scene

TINY = Config.tiny()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole tiny training."""
    folder = tmp_path_factory.mktemp("run")
    run_stages(TINY, folder, init=None, device="cpu")
    return folder


def pictures(count: int) -> torch.Tensor:
    rng = random.Random(0)
    return render([sample_scene(rng) for _ in range(count)])


def trainer_of(network: torch.nn.Module, steps: int, state: Path) -> Trainer:
    pace = Pace(steps=steps, learning_rate=4e-3, batch=8, warmup_steps=2)
    parameters = dict(network.named_parameters())
    return Trainer("test", parameters, pace, Team(), state, seed=0, save_seconds=99, log_steps=999)


def fall(losses: list[float]) -> float:
    """The mean of the last fifth against that of the first."""
    part = len(losses) // 5
    return sum(losses[-part:]) / sum(losses[:part])


def test_vae_loss_falls(tmp_path: Path):
    torch.manual_seed(0)
    vae, drawn = new_vae(TINY), pictures(24) * 2 - 1
    trainer = trainer_of(vae, 40, tmp_path / "state.safetensors")
    for generator in trainer:
        loss, figures = vae_loss(vae, drawn[torch.randint(0, 24, (8,), generator=generator)], generator)
        trainer.update(loss, **figures)
    assert fall(trainer.losses) < 0.85


def test_base_loss_falls(run: Path, tmp_path: Path):
    torch.manual_seed(0)
    tokenizer, _ = load_tokenizers(run)
    encoder, encoder_2 = new_text_encoders(TINY, tokenizer)
    unet = new_unet(TINY, TINY.text_width + TINY.text_width_2, BASE_TIME_IDS)
    networks = torch.nn.ModuleDict({"one": encoder, "two": encoder_2, "unet": unet})
    data, empty, levels = load_dataset(run / "dataset"), token_ids(tokenizer, [""])[0], noise_levels()
    trainer = trainer_of(networks, 40, tmp_path / "state.safetensors")
    for generator in trainer:
        ids, latents = draw_batch(data, 8, empty, generator)
        timesteps = spread_timesteps(8, 1000, generator)
        end = tokenizer.eos_token_id
        errors = base_errors(unet, encoder, encoder_2, ids, latents, timesteps, levels, end, generator)
        trainer.update(errors.mean())
    assert fall(trainer.losses) < 0.8


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path):
    def train(steps_before_stop: int | None, state: Path) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 1)
        trainer = trainer_of(network, 12, state)
        for generator in trainer:
            loss = (network(torch.randn(8, 4, generator=generator)) - 1).square().mean()
            trainer.update(loss)
            if trainer.step == steps_before_stop:
                trainer.save()
                break
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    straight = train(None, tmp_path / "straight.safetensors")
    train(5, tmp_path / "stopped.safetensors")
    torch.testing.assert_close(train(None, tmp_path / "stopped.safetensors"), straight)


def test_learning_rate_rises_then_falls_to_its_floor():
    pace = Pace(steps=100, learning_rate=1.0, batch=1, warmup_steps=10, floor=0.1)
    rates = [learning_rate(pace, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=0.05)
    assert rates[100] == pytest.approx(0.1)


def test_stretched_latents_have_unit_variance_and_decode_the_same():
    torch.manual_seed(0)
    vae, drawn = new_vae(TINY).eval(), pictures(8)
    before = round_trip(vae, drawn)
    mean, deviation = latent_statistics(vae, drawn, "cpu")
    stretch_latents(vae, mean, 1 / (deviation * vae.config.scaling_factor))
    _, stretched = latent_statistics(vae, drawn, "cpu")
    torch.testing.assert_close(stretched * vae.config.scaling_factor, torch.ones(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(round_trip(vae, drawn), before, atol=1e-4, rtol=0)


def test_a_vae_that_loses_shapes_closes_the_gate_for_either_kind_of_scene(tmp_path: Path):
    new_vae(TINY).save_pretrained(tmp_path / "vae")
    asking = replace(TINY, vae_gate=0.98, vae_gate_pairs=0.95)
    with pytest.raises(
        GateClosed, match=r"of one thing the VAE keeps .* than 98%; of two things .* than 95%"
    ):
        check_round_trip(asking, tmp_path / "vae", tmp_path / "round-trip.png", count=40)
    assert (tmp_path / "round-trip.png").exists()


@pytest.mark.slow
def test_the_committed_vae_passes_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "base" / "vae", variant="fp16", torch_dtype=torch.float32)
    vae.save_pretrained(tmp_path / "vae")
    check_round_trip(Config(), tmp_path / "vae", tmp_path / "round-trip.png")
    assert "round trip, two things: 0.9" in capsys.readouterr().out


def test_a_faultless_picture_shows_its_own_shapes_and_nobody_elses():
    rng = random.Random(1)
    scenes = [sample_scene(rng, hidden=0, captioned=0, pairs=1) for _ in range(60)]
    drawn = render(scenes)
    shown = [shapes_kept(scene, picture) for scene, picture in zip(scenes, drawn, strict=True)]
    assert sum(shown) >= 0.97 * 2 * len(scenes)
    others = [shapes_kept(scene, picture) for scene, picture in zip(scenes[1:], drawn, strict=False)]
    assert sum(others) < 0.15 * 2 * len(scenes)


def test_finished_stages_are_not_run_again(run: Path, capsys: pytest.CaptureFixture[str]):
    run_stages(TINY, run, init=None, device="cpu")
    assert capsys.readouterr().out == ""


def test_result_loads_and_draws_with_stock_diffusers(run: Path):
    base = StableDiffusionXLPipeline.from_pretrained(run / "weights/base", variant="fp16")
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(run / "weights/refiner", variant="fp16")
    latents = base("a red circle", num_inference_steps=4, denoising_end=0.5, output_type="latent").images
    image = refiner("a red circle", image=latents, num_inference_steps=4, denoising_start=0.5).images[0]
    assert image.size == (64, 64)
    assert base.config.force_zeros_for_empty_prompt
    assert refiner.config.requires_aesthetics_score


def test_result_names_no_machine(run: Path):
    for path in (run / "weights").rglob("*.json"):
        assert str(run) not in path.read_text()


def test_grown_networks_start_as_the_smaller_ones_that_they_grew_from(run: Path):
    torch.manual_seed(0)
    base, grown = run / "weights/base", replace(TINY, text_layers=3, unet_transformers=(1, 1, 2))
    old = StableDiffusionXLPipeline.from_pretrained(base, variant="fp16")
    tokenizer, vocab = old.tokenizer, base / "tokenizer" / "vocab.json"
    ids = token_ids(tokenizer, ["a red circle left of a blue square"])
    encoder, _ = new_text_encoders(grown, tokenizer)
    warm_start_text_encoder(encoder, base / "text_encoder", tokenizer, vocab)
    states = old.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder(ids, output_hidden_states=True).hidden_states[-2], states)
    unet = new_unet(grown, 64, BASE_TIME_IDS)
    warm_start_unet(unet, base / "unet")
    conditions = {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)}
    asked = torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, 64)
    torch.testing.assert_close(
        unet(*asked, added_cond_kwargs=conditions).sample,
        old.unet(*asked, added_cond_kwargs=conditions).sample,
    )
