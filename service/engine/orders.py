"""What the engine is asked for, and what it says while it works."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from darkroom.types import LoraScope, SchedulerName, Timings, TokenReport
from lora_registry.records import Component
from service.engine.prompts import ParsedPrompt
from service.engine.snapshots import Snapshot

Size = tuple[int, int]
"""(height, width) in pixels, as diffusers' micro-conditioning has it."""


@dataclass(frozen=True)
class HandOver:
    """The refiner's part: where it takes over, and what it is told about beauty."""

    denoising_end: float
    """0..1, the share of the noise schedule that the base does."""
    aesthetic_score: float
    negative_aesthetic_score: float


def name_of_sham(digest: str, seed: int) -> str:
    """What the sham of an adapter is called where adapters are held by digest."""
    return f"{digest}+sham-{seed}"


@dataclass(frozen=True)
class LoraOrder:
    """One LoRA or embedding of an order: which bytes, how strong, and where it counts."""

    ref: str
    """`name@3`."""
    name: str
    digest: str
    auto_v3: str = ""
    weight: float = 1.0
    scope: LoraScope = "both"
    start: float = 0.0
    end: float = 1.0
    components: tuple[tuple[Component, float], ...] = ()
    """Factors on the weight; 1 for a component that is not named."""
    blocks: tuple[tuple[str, float], ...] = ()
    """Factors on the weight for parts of the base UNet, by the beginning of a layer's name."""
    touches: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")
    """What it has changes or vectors for."""
    tokens: tuple[str, ...] = ()
    """What its embeddings are called in a prompt."""
    sham: int | None = None
    """Named: not the file's changes, but random ones of their size, drawn with this seed."""

    @property
    def adapter(self) -> str:
        """What its adapter is called in memory: the digest of the file, and what was made of it."""
        return self.digest if self.sham is None else name_of_sham(self.digest, self.sham)


@dataclass(frozen=True)
class Order:
    """Images that share everything but their seeds, with every default filled in."""

    prompt: ParsedPrompt
    negative_prompt: ParsedPrompt | None
    """None and an empty prompt differ: see `Models.force_zeros_for_empty_prompt`."""
    seeds: tuple[int, ...]
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerName
    hand_over: HandOver | None
    """None: the base does all steps."""
    original_size: Size
    crops_coords_top_left: Size
    target_size: Size
    negative_original_size: Size | None
    negative_crops_coords_top_left: Size
    negative_target_size: Size | None
    loras: tuple[LoraOrder, ...] = ()
    previews: bool = False
    apart: bool = False
    """Share no pass of the UNet or the VAE with other images: the pictures are then the same to the last bit, whoever
    is served meanwhile. (A pass of more rows rounds otherwise.)"""
    start: Snapshot | None = None
    """Go on from here; for one image."""
    until: int | None = None
    """Stop after so many steps; the end is then a snapshot, and no picture. For one image."""
    question: ParsedPrompt | None = None
    """Score how well the finished image fits this prompt (see `adherence`), and decode no picture. For one image."""

    @property
    def guided(self) -> bool:
        """Whether two rows are evaluated a step, as diffusers decides it."""
        return self.guidance_scale > 1.0

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True)
class Progress:
    """One image has made one step."""

    index: int
    step: int
    """Steps done, of `steps`."""
    steps: int
    preview_HWC: np.ndarray | None = None
    """A small uint8 picture of the present estimate, where the order asked for previews."""


@dataclass(frozen=True)
class Picture:
    """One finished image, before it is encoded."""

    index: int
    seed: int
    pixels_HWC: np.ndarray
    base_steps: int
    refiner_steps: int


@dataclass(frozen=True)
class Done:
    """The order has ended; seconds are shares of the device's time, queue and total of the clock."""

    pictures: tuple[Picture, ...]
    tokens: TokenReport
    timings: Timings
    snapshot: Snapshot | None = None
    """Of an order for one image that is `apart`: where it stopped, be it on the way or at the end."""
    adherence: float | None = None
    """Where the order had a question."""


@dataclass(frozen=True)
class Failed:
    """The order ended without images."""

    error: Exception


Event = Progress | Done | Failed

Listener = Callable[[Event], None]
"""Called on the engine's own thread: return at once, hand the event on."""
