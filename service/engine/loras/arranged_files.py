"""Arranged adapters on the disk, for the model and dtype that they were arranged for: to read one back is to read few
large tensors, where the LoRA's own file has two small ones for each layer and names that have to be understood.

The form is a safetensors file with a CRC-32 of all of it behind. It is a cache: what is not as it should be is as
good as absent.
"""

import hashlib
import io
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import torch
from isal import isal_zlib
from safetensors.torch import save

from lora_registry.header import UnreadableHeader, read_header
from lora_registry.records import Component
from service.engine.loras.arranged import Arranged, Changes, Layout, Place, Run
from service.engine.loras.changes import Change

VERSION: Final = 1
"""Counts up with every change of the form, of `arrange` or of what intake takes a file to mean."""
_CRC: Final = struct.Struct("<I")
_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def suffix_for(layout: Layout, dtype: torch.dtype) -> str:
    """What tells files apart that were arranged for different models or dtypes."""
    places = [
        (component, name, *place)
        for component, by_name in sorted(layout.items())
        for name, place in by_name.items()
    ]
    text = json.dumps([VERSION, str(dtype), places])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(arranged: Arranged, file: BinaryIO) -> None:
    """Write it, on the host, from the file's beginning."""
    tensors: dict[str, torch.Tensor] = {}
    entries: list[dict[str, Any]] = []
    for entry, named in _entries(arranged):
        number = len(entries)
        entries.append(entry | {"roles": list(named)})
        tensors |= {f"{number}.{role}": tensor.contiguous() for role, tensor in named.items()}
    data = save(tensors, {"digest": arranged.digest, "entries": json.dumps(entries)})
    file.write(data)
    file.write(_CRC.pack(isal_zlib.crc32(data)))


def read(file: BinaryIO) -> Arranged | None:
    """What was written; None where it is damaged. All its tensors share one piece of memory."""
    data = bytearray(file.read())
    body = memoryview(data)[: -_CRC.size]
    if len(data) < _CRC.size or _CRC.unpack(memoryview(data)[-_CRC.size :])[0] != isal_zlib.crc32(body):
        return None
    try:
        header = read_header(io.BytesIO(body[: 8 + int.from_bytes(body[:8], "little")]), len(body))
    except UnreadableHeader:
        return None
    components: dict[Component, tuple[list[Run], list[tuple[Place, Change]]]] = defaultdict(lambda: ([], []))
    embeddings: dict[str, dict[Component, torch.Tensor]] = defaultdict(dict)
    for number, entry in enumerate(json.loads(header.metadata["entries"])):
        named: dict[str, torch.Tensor] = {}
        for role in entry["roles"]:
            found = header.tensors[f"{number}.{role}"]
            flat = torch.frombuffer(data, dtype=_DTYPES[found.dtype], count=found.count, offset=found.start)
            named[role] = flat.view(found.shape)
        match entry["kind"]:
            case "run":
                run = Run(entry["group"], entry["first"], named["up"], named["down"])
                components[entry["component"]][0].append(run)
            case "single":
                change = Change(entry["algorithm"], entry["scale"], named)
                components[entry["component"]][1].append((Place(*entry["place"]), change))
            case _:
                embeddings[entry["token"]][entry["component"]] = named["vectors"]
    return Arranged(
        header.metadata["digest"],
        {
            component: Changes(tuple(runs), tuple(singles))
            for component, (runs, singles) in components.items()
        },
        dict(embeddings),
    )


def _entries(arranged: Arranged) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Every part of it: what it is, and its tensors by role."""
    for component, changes in arranged.components.items():
        for run in changes.runs:
            what = {"kind": "run", "component": component, "group": run.group, "first": run.first}
            yield what, {"up": run.up_nOr, "down": run.down_nrI}
        for place, change in changes.singles:
            yield (
                {
                    "kind": "single",
                    "component": component,
                    "place": list(place),
                    "algorithm": change.algorithm,
                    "scale": change.scale,
                },
                dict(change.tensors),
            )
    for token, vectors in arranged.embeddings.items():
        for component, tensor in vectors.items():
            yield {"kind": "embedding", "token": token, "component": component}, {"vectors": tensor}
