"""The resident weights: base, refiner, VAE and text encoders, loaded by diffusers and laid out for serving."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_registry.records import Component
from service.engine import folders, presets
from service.engine.loras.arranged import Layout
from service.engine.loras.weights import Weights
from service.engine.presets import Preset
from service.errors import InvalidSettings, ModelNotFound

UNetName = Literal["base", "refiner"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Models:
    """Everything resident. Sizes, scale factors and defaults are read from the loaded configs."""

    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    tokenizer_2: CLIPTokenizer
    text_encoder_2: CLIPTextModelWithProjection
    unets: dict[UNetName, UNet2DConditionModel]
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: frozenset[UNetName]
    """The UNets for which an absent negative prompt is zeros: of SDXL the base, not the refiner."""
    requires_aesthetics_score: bool
    """The refiner's time ids end in a score and not in a target size."""
    weights: Mapping[Component, Weights]
    """What LoRAs may bend: the base UNet and both text encoders. Never the refiner."""

    @property
    def layout(self) -> Layout:
        """Where each layer is that a LoRA may bend."""
        return {component: weights.layout for component, weights in self.weights.items()}

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything that lies on the device, but for pristine copies."""
        for module in (self.text_encoder, self.text_encoder_2, self.vae, *self.unets.values()):
            yield from module.parameters()
            yield from module.buffers()

    @property
    def has_refiner(self) -> bool:
        return "refiner" in self.unets

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along one edge."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return int(self.unets["base"].config.in_channels)

    @property
    def default_edge(self) -> int:
        """Pixels of the square that the base was trained for."""
        return int(self.unets["base"].config.sample_size) * self.vae_scale_factor


def pick_device(setting: str) -> torch.device:
    """The device that the setting names; `auto` is CUDA where there is some, else the CPU.

    Raises:
        InvalidSettings: no such device, or CUDA is asked for and not there.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as exc:
        raise InvalidSettings(f"DARKROOM_DEVICE is '{setting}', which is no torch device") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings(f"DARKROOM_DEVICE is '{setting}', but torch sees no CUDA device")
    return device


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype that the setting names; `auto` is float16 on CUDA, and float32 on the CPU, where it is faster."""
    if setting == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES[setting]


SMALL_UNET_PARAMETERS = 50_000_000
KEPT_BYTES = 128 << 20
"""Of base UNet weights under LoRAs that are asked for again and again, on a CPU."""


def pick_threads(models: Models) -> int:
    """CPU threads that a step is fastest with: torch's own choice, but one where the UNet is small.

    Two threads took twice as long as one with a UNet of 3 M parameters: its layers are done before a thread wakes.
    """
    parameters = sum(parameter.numel() for parameter in models.unets["base"].parameters())
    return 1 if parameters < SMALL_UNET_PARAMETERS else torch.get_num_threads()


def load(
    preset: Preset,
    *,
    device: torch.device,
    dtype: torch.dtype,
    refiner: bool = True,
    compile_unets: bool = False,
    pristine_on_host: bool = False,
    offline: bool = False,
    token: str | None = None,
) -> Models:
    """Load a preset's base and, where it has one and `refiner` is true, its refiner, sharing encoder 2 and VAE.

    `pristine_on_host` keeps the pristine copies of weights that LoRAs bend in the host's memory.

    Raises:
        ModelNotFound: a file is missing, or a folder holds something else than SDXL.
    """
    base_folder = presets.locate(preset.base, offline=offline, token=token)
    refiner_folder = (
        presets.locate(preset.refiner, offline=offline, token=token) if refiner and preset.refiner else None
    )
    vae_folder = presets.locate(preset.vae, offline=offline, token=token) if preset.vae else None
    files = _named("base", folders.weights_of(base_folder, given=frozenset({"vae"} if vae_folder else ())))
    if refiner_folder:
        shared = frozenset({"vae", "text_encoder_2", "tokenizer_2"})
        files |= _named("refiner", folders.weights_of(refiner_folder, given=shared))
    if vae_folder:
        files |= _named("vae", folders.component_weights(vae_folder))

    with ThreadPoolExecutor(1) as hashing:
        fingerprint = hashing.submit(folders.fingerprint, files)
        parts = _load_pipelines(base_folder, refiner_folder, vae_folder, dtype)
        unets = {name: pipeline.unet for name, pipeline in parts.by_name().items()}
        for module in (parts.base.text_encoder, parts.base.text_encoder_2, parts.base.vae, *unets.values()):
            module.requires_grad_(False).eval().to(device)
        if device.type == "cuda":
            for convolutional in (parts.base.vae, *unets.values()):
                convolutional.to(memory_format=torch.channels_last)
        if compile_unets:
            for unet in unets.values():
                unet.compile_repeated_blocks(fullgraph=True)
        return Models(
            name=preset.name,
            fingerprint=fingerprint.result(),
            device=device,
            dtype=dtype,
            tokenizer=parts.base.tokenizer,
            text_encoder=parts.base.text_encoder,
            tokenizer_2=parts.base.tokenizer_2,
            text_encoder_2=parts.base.text_encoder_2,
            unets=unets,
            vae=parts.base.vae,
            scheduler_config=dict(parts.base.scheduler.config),
            force_zeros_for_empty_prompt=frozenset(
                name
                for name, pipeline in parts.by_name().items()
                if pipeline.config.force_zeros_for_empty_prompt
            ),
            requires_aesthetics_score=bool(parts.refiner and parts.refiner.config.requires_aesthetics_score),
            weights=bendable(
                unets["base"],
                parts.base.text_encoder,
                parts.base.text_encoder_2,
                pristine_on=torch.device("cpu") if pristine_on_host else None,
                # On a CUDA device a merge takes hardly longer than a copy: both wait for its memory.
                kept_bytes=KEPT_BYTES if device.type == "cpu" else 0,
            ),
        )


def bendable(
    base: torch.nn.Module,
    text_encoder: torch.nn.Module,
    text_encoder_2: torch.nn.Module,
    *,
    pristine_on: torch.device | None = None,
    kept_bytes: int = 0,
) -> Mapping[Component, Weights]:
    """The weights that LoRAs may bend; see `Weights`. Once for each module, which must be on its device."""
    return {
        "unet": Weights("unet", base, pristine_on=pristine_on, kept_bytes=kept_bytes),
        "text_encoder": Weights("text_encoder", text_encoder, pristine_on=pristine_on),
        "text_encoder_2": Weights("text_encoder_2", text_encoder_2, pristine_on=pristine_on),
    }


def _named(part: str, files: dict[str, Path]) -> dict[str, Path]:
    return {f"{part}/{name}": path for name, path in files.items()}


@dataclass(frozen=True)
class _Pipelines:
    base: StableDiffusionXLPipeline
    refiner: StableDiffusionXLImg2ImgPipeline | None

    def by_name(self) -> dict[UNetName, StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline]:
        return {"base": self.base, "refiner": self.refiner} if self.refiner else {"base": self.base}


def _load_pipelines(
    base_folder: Path, refiner_folder: Path | None, vae_folder: Path | None, dtype: torch.dtype
) -> _Pipelines:
    options = {"dtype": dtype, "use_safetensors": True, "add_watermarker": False, "local_files_only": True}
    try:
        shared = {"vae": AutoencoderKL.from_pretrained(vae_folder, dtype=dtype)} if vae_folder else {}
        base = StableDiffusionXLPipeline.from_pretrained(
            base_folder, variant=folders.variant_of(base_folder), **shared, **options
        )
        if refiner_folder is None:
            return _Pipelines(base, None)
        refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            refiner_folder,
            variant=folders.variant_of(refiner_folder),
            text_encoder_2=base.text_encoder_2,
            tokenizer_2=base.tokenizer_2,
            vae=base.vae,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        raise ModelNotFound(
            f"{base_folder.name} is not an SDXL model that diffusers can load: {exc}"
        ) from exc
    return _Pipelines(base, refiner)
