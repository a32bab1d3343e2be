"""Every number of the training, in one place."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pace:
    """How long a stage trains and how fast it learns: a short rise, then half a cosine down to `floor`.

    The stage ends after `steps`, or after `seconds` of training if that comes first (None: no limit); the
    cosine follows whichever is nearer its end.
    """

    steps: int
    learning_rate: float
    batch: int
    """Pictures per step and process."""
    seconds: float | None = None
    warmup_steps: int = 60
    floor: float = 0.02
    ema_decay: float = 0.997


@dataclass(frozen=True)
class Config:
    """The recipe. `Config()` makes the committed weights, `Config.tiny()` a toy for the tests."""

    seed: int = 1
    processes: int = 2
    """Training processes with one gradient all-reduce a step; on shared cores two beat two OpenMP threads."""
    save_seconds: float = 120.0
    log_steps: int = 100

    vae_channels: tuple[int, ...] = (16, 32, 48)
    vae_pool: int = 3000
    """Pictures that each process holds to train the VAE; a tenth is drawn anew every 100 steps."""
    vae: Pace = Pace(steps=9000, learning_rate=1.5e-3, batch=16, ema_decay=0.995)
    vae_gate: float = 0.98
    """Share of shapes, each in its own colour, that must survive the VAE's round trip before the UNet may train."""
    vae_gate_pairs: float = 0.95
    """The same in scenes of two things, which are smaller, and textured more often than a prompt asks for it."""

    pictures: int = 64_000
    """Training pictures for the UNets, each with two captions."""
    text_width: int = 64
    text_width_2: int = 96
    text_layers: int = 3
    unet_channels: tuple[int, ...] = (32, 64, 96)
    unet_layers: int = 1
    unet_transformers: tuple[int, ...] = (1, 1, 2)
    """Transformer layers of each level; SDXL has (0, 2, 10)."""
    base: Pace = Pace(steps=16_000, learning_rate=1.0e-3, batch=20)
    refiner: Pace = Pace(steps=4000, learning_rate=5e-4, batch=20, warmup_steps=30, ema_decay=0.99)
    refiner_timesteps: int = 320
    """The refiner sees only the last timesteps, below this one."""

    evaluation_prompts: int = 310
    evaluation_pairs: int = 124
    evaluation_paired: int = 62
    """Prompts of each comparison of two ways to draw the same prompt and seed."""
    guidance_scale: float = 5.0
    num_inference_steps: int = 20

    @classmethod
    def tiny(cls) -> "Config":
        """A model that trains in seconds: same stages, same shapes of data, next to no width."""
        pace = Pace(steps=12, learning_rate=2e-3, batch=4, warmup_steps=2)
        return replace(
            cls(),
            processes=1,
            log_steps=4,
            vae_channels=(4, 8, 8),
            vae_pool=24,
            vae=pace,
            vae_gate=0.0,
            vae_gate_pairs=0.0,
            pictures=48,
            text_width=32,
            text_width_2=32,
            text_layers=2,
            unet_channels=(8, 16, 32),
            unet_transformers=(1, 1, 1),
            base=pace,
            refiner=pace,
            evaluation_prompts=2,
            evaluation_pairs=2,
            evaluation_paired=2,
            num_inference_steps=2,
        )
