"""The finished model as two plain diffusers folders, in fp16, that stock pipelines load by themselves."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .networks import new_scheduler
from .tokenizers import load_tokenizers


def write_folders(run: Path, weights: Path) -> None:
    """Write `weights`/base and `weights`/refiner from the networks of a training run."""
    write_base(run, weights / "base")
    write_refiner(run, weights / "refiner")


def write_base(run: Path, folder: Path) -> None:
    """Write the base pipeline from the networks of a training run."""
    tokenizer, tokenizer_2 = load_tokenizers(run)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(run / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(run / "text_encoder_2"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=UNet2DConditionModel.from_pretrained(run / "unet"),
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    _write(pipeline, run, folder)


def write_refiner(run: Path, folder: Path) -> None:
    """Write the refiner pipeline; encoder 2, its tokenizer and the VAE are the base's own."""
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(run / "text_encoder_2"),
        tokenizer_2=load_tokenizers(run)[1],
        unet=UNet2DConditionModel.from_pretrained(run / "refiner-unet"),
        scheduler=new_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    _write(pipeline, run, folder)


def _write(
    pipeline: StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline, run: Path, folder: Path
) -> None:
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(fresh, variant="fp16")
    for name in ("tokenizer", "tokenizer_2"):
        if (fresh / name).is_dir():
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(run / name / file, fresh / name)
    for config in fresh.glob("*/config.json"):
        facts = json.loads(config.read_text())
        # What a network was loaded from is the training machine's business.
        facts.pop("_name_or_path", None)
        if "dtype" in facts:
            # Stored as fp16, loaded as fp32: transformers would otherwise leave it fp16 beside an fp32 UNet.
            facts["dtype"] = "float32"
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load_base(folder: Path) -> StableDiffusionXLPipeline:
    """The base in fp32, quiet."""
    logging.disable_progress_bar()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, variant="fp16")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_refiner(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """The refiner in fp32, quiet."""
    logging.disable_progress_bar()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, variant="fp16")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
