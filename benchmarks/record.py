"""A run's figures as one JSON file, with what they were measured on. It names no host and no path."""

import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "darkroom-service",
    "torch",
    "diffusers",
    "transformers",
    "compel",
    "accelerate",
    "numpy",
    "pillow",
    "isal",
    "bentoml",
    "starlette",
    "httpx",
)


@dataclass
class Record:
    """Grows while a suite runs. Every `add` writes the file anew, so a run that is cut short leaves what it had."""

    suite: str
    command: str
    device: torch.device
    folder: Path = RESULTS
    sections: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def file(self) -> Path:
        return self.folder / f"{self.suite}-{self.started:%Y-%m-%d}-{machine_class(self.device)}.json"

    def add(self, name: str, figures: Any) -> None:
        """Keep one section's figures."""
        self.sections[name] = figures
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")

    def as_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "date": self.started.strftime("%Y-%m-%d"),
            "command": self.command,
            "machine": machine(self.device),
            "versions": versions(),
            "figures": self.sections,
        }


def machine_class(device: torch.device) -> str:
    """A name for machines that may be compared: `cpu-2-cores`, `nvidia-h200`."""
    if device.type != "cuda":
        return f"cpu-{cores()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    described: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        # Other processes make absolute figures worse; the ratios much less so.
        "load_average_1_minute": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["gpu_memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
        described["gpu_driver"] = gpu_driver()
    return described


def versions() -> dict[str, str]:
    """Of Python, CUDA and every package that matters and is there."""
    found = {"python": platform.python_version()}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a GPU machine has no HTTP side
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def gpu_driver() -> str:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else "unknown"
