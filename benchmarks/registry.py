"""What a registry with 10 to 10 000 LoRAs costs: start-up, resolve, list, search, memory; and one publish, by size.

`python -m benchmarks.registry [--database postgresql://…]` prints a table. Goals: resolve ≤ 0.2 ms, start-up ≤ 0.5 s,
memory growth ≤ 20 MB.
"""

import argparse
import hashlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np

from lora_registry import Registry
from lora_registry.catalog import Catalog, Publication
from lora_registry.database import Database
from lora_registry.families import sdxl
from lora_registry.inspection import inspect
from lora_registry.rows import summary_text

SIZES = (10, 100, 1_000, 10_000)
LOOKUPS = 3_000

_FRESH_PROCESS = """
import os, sys, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
begin = time.perf_counter()
from lora_registry import Registry
from lora_registry.families import sdxl
imported = time.perf_counter()
registry = Registry.connect([sdxl()], data=__import__("pathlib").Path(sys.argv[1]), database=sys.argv[2])
opened = time.perf_counter()
registry.resolve(sys.argv[3])
resolved = time.perf_counter()
memory = resident()
for i in range(int(sys.argv[4])):
    registry.resolve(f"lora-{i:05d}")
grown = resident() - memory
print(imported - begin, opened - imported, resolved - opened, memory, grown)
"""


def lora_file(rank: int = 16, dtype: str = "<f2") -> bytes:
    """All attention layers of SDXL, random: 46 MB at rank 16."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, layer in sdxl().layers["unet"].items():
        if ".attn" in name:
            tensors[f"unet.{name}.lora_A.weight"] = rng.standard_normal(
                (rank, layer.inputs), np.float32
            ).astype(dtype)
            tensors[f"unet.{name}.lora_B.weight"] = np.full((layer.outputs, rank), 0.01, dtype)
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def fill(database: Database, start: int, end: int, summary: str) -> None:
    """Catalogue entries without bytes: what is measured here never opens one."""
    catalog = Catalog(database, lambda: int(time.time() * 1000))
    for i in range(start, end):
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        wanted = Publication(
            name=f"lora-{i:05d}",
            number=0,
            digest=digest,
            data_sha256=digest[::-1],
            size_bytes=46_400_000,
            summary=summary,
            triggers=(f"trigger {i}",),
            tags=("style", f"tag {i % 50}"),
            description="",
            aliases=("prod",),
        )
        catalog.record(wanted, lambda: None)


def milliseconds(work: Callable[[int], object], times: int) -> tuple[float, float]:
    """Median and 99th percentile."""
    took = []
    for i in range(times):
        begin = time.perf_counter()
        work(i)
        took.append((time.perf_counter() - begin) * 1000)
    return statistics.median(took), statistics.quantiles(took, n=100)[98] if times > 1 else took[0]


def measure(folder: Path, url: str, count: int) -> None:
    """One row of the table."""
    with Registry.connect([sdxl()], data=folder, database=url) as registry:
        stride = 7919  # prime, so that all parts of the index are visited
        names = [f"lora-{i * stride % count:05d}" for i in range(LOOKUPS)]
        digest = registry.resolve(names[0]).digest
        for _ in range(200):
            registry.resolve(names[0])
        rows = {
            "name": milliseconds(lambda i: registry.resolve(names[i]), LOOKUPS),
            "name@1": milliseconds(lambda i: registry.resolve(f"{names[i]}@1"), LOOKUPS),
            "name:prod": milliseconds(lambda i: registry.resolve(f"{names[i]}:prod"), LOOKUPS),
            "sha256": milliseconds(lambda _: registry.resolve(digest), LOOKUPS),
            "list 50": milliseconds(lambda _: registry.list(), 20),
            "search name": milliseconds(lambda i: registry.list(name=names[i][-4:]), 20),
            "search trigger": milliseconds(lambda i: registry.list(trigger=f"r {i}"), 20),
            "search hash": milliseconds(lambda _: registry.list(hash=digest[7:17]), 20),
        }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _FRESH_PROCESS, str(folder), url, names[0], str(count)]
    fresh = [
        [
            float(x)
            for x in subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        for _ in range(3)
    ]
    imported, opened, first, memory, grown = min(fresh, key=lambda figures: figures[0] + figures[1])
    print(f"\n{count} LoRAs")
    print(f"  import {imported:.3f} s, open {opened:.3f} s, first resolve {first * 1000:.1f} ms")
    print(f"  memory {memory:.0f} MB, after resolving all of them +{grown:.1f} MB")
    for name, (median, worst) in rows.items():
        print(f"  {name:15} p50 {median:8.3f} ms   p99 {worst:8.3f} ms")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="", help="an empty PostgreSQL database instead of SQLite")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest registry (%(default)s)")
    chosen = parser.parse_args()
    data = lora_file()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = chosen.database or f"sqlite:///{folder / 'registry.sqlite3'}"
        found = inspect(BytesIO(data), len(data), [sdxl()])
        begin, done = time.perf_counter(), 0
        database = Database(url)
        for count in (size for size in SIZES if size <= chosen.most):
            fill(database, done, count, summary_text(found))
            done = count
            measure(folder, url, count)
        database.close()
        print(f"\nall in {time.perf_counter() - begin:.0f} s")
        with Registry.connect([sdxl()], data=folder / "files") as registry:
            for rank in (4, 16, 64):
                data = lora_file(rank)
                begin = time.perf_counter()
                registry.publish(f"rank-{rank}", BytesIO(data))
                print(
                    f"publish rank {rank}: {len(data) / 1e6:6.1f} MB in {time.perf_counter() - begin:.2f} s"
                )


if __name__ == "__main__":
    main()
