"""Settings of the service, read from `DARKROOM_*` environment variables and checked once at start-up."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Scope = Literal["generate", "loras:read", "loras:write", "train", "admin"]


class ApiKey(BaseModel):
    """A key by its hash: the service never knows the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope]


class Settings(BaseSettings):
    """Everything a deployment may choose. `python -m service settings` prints them with their defaults."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    model: str = "auto"
    """`pocket`, `sdxl`, a folder that holds `base/` (and `refiner/`), or `auto`: sdxl where CUDA is, else pocket."""
    device: str = "auto"
    """A torch device; `auto` is `cuda` where there is one, else `cpu`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: float32 on the CPU (half precision is slower there), float16 on CUDA."""
    refiner: bool = True
    """Keep the refiner resident."""
    memory_profile: Literal["auto", "16", "24", "80"] = "auto"
    """Size of the card in GB, which bounds how many rows share a forward pass; `auto` asks the device."""
    compile: bool = False
    """Compile the UNets' repeated blocks with torch.compile (CUDA; the first pictures of each size are slow)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for torch; default: one for a small model, else torch's own choice."""
    offline: bool = False
    """Never ask the hub: the preset's files must be in the cache."""

    max_queue_seconds: float = Field(default=120.0, gt=0)
    """Work that a busy service takes, in estimated seconds of the device; beyond it requests get 503."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Deadline of a request that names none."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    drain_seconds: float = Field(default=20.0, ge=0)
    """On shutdown, how long work in flight may take to finish."""

    data: Path = Field(default_factory=lambda: _data_home() / "darkroom")
    """Folder of the LoRA registry (a SQLite file and blobs); made when it is first needed."""
    database: SecretStr = SecretStr("")
    """`postgresql://…` for a registry that many replicas share; default: SQLite in `data`."""
    blobs: str = ""
    """`s3://bucket/prefix` (or another folder) for the registry's files; default: `data`/blobs."""
    lora_host_bytes: int = Field(default=4 << 30, ge=0)
    """Host memory for LoRAs that wait to be used again."""
    lora_device_bytes: int = Field(default=2 << 30, ge=0)
    """Device memory for the same; on the CPU the host's memory serves."""
    lora_disk_bytes: int = Field(default=20 << 30, ge=0)
    """Half for copies of files from a store elsewhere, half for LoRAs as they were arranged for the resident model."""

    training: Literal["local", "off"] = "local"
    """`local`: train jobs run on this machine, each in a process of its own. `off`: they wait for another replica."""
    training_device: str = ""
    """A torch device for train jobs; default: the service's own."""
    gpu_sharing: Literal["share", "pause", "separate"] = "share"
    """Between pictures and a train job: `share` lets the job make steps while no picture is wanted, `pause` gives it
    the device and its memory until it is done, and callers get 503; `separate`: they do not meet (see
    `training_device`)."""

    compare_max_cells: int = Field(default=1000, ge=1)
    """arms × prompts × seeds of one comparison."""
    compare_max_seconds: float = Field(default=3600.0, gt=0)
    """Of the device, by estimate, for one comparison."""
    compare_keep_days: float = Field(default=30.0, gt=0)
    """How long a comparison is kept after its end."""
    clip: str = ""
    """A CLIP model (a folder, or a name on the hub) that scores pictures of comparisons by their prompt, on the CPU."""

    audit_seconds: float = Field(default=5.0, ge=0)
    """A readiness probe has the weights in memory checked, unless they were within this time."""
    canary_seconds: float = Field(default=300.0, ge=0)
    """And has the canary picture made again, where the service is idle, after this time."""

    auth: Literal["keys", "disabled"] = "keys"
    """`disabled` lets anyone in, on any address. With `keys` and none configured, only a loopback bind starts."""
    api_keys: tuple[ApiKey, ...] = ()
    api_keys_file: Path | None = None
    """JSON list of keys, for a mounted secret; read at start-up, added to `api_keys`."""
    hf_token: SecretStr | None = None

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
