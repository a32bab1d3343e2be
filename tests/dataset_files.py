"""Pictures, good and bad, and the archives that they come in, for the tests of datasets."""

import io
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from service.datasets.datasets import Datasets
from service.store import database, files

RED = (222, 45, 45)


def pixels(seed: int = 0, width: int = 24, height: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(seed: int = 0, **size) -> bytes:
    return saved(Image.fromarray(pixels(seed, **size)))


def jpeg(seed: int = 0, **options) -> bytes:
    return saved(Image.fromarray(pixels(seed)), "JPEG", **options)


def webp(seed: int = 0) -> bytes:
    return saved(Image.fromarray(pixels(seed)), "WEBP", lossless=True)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def with_exif(orientation: int = 1) -> bytes:
    """A JPEG, red on the left and white on the right, that says where it was taken."""
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste(RED, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera of somebody"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    return saved(picture, "JPEG", exif=exif, comment=b"at home", quality=95)


def sixteen_bit_grey() -> bytes:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    return saved(Image.fromarray(levels))


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a secret prompt")
    return saved(Image.fromarray(pixels()), pnginfo=info)


def giant_header(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """Bytes are files; a TarInfo is put in as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def form(members: dict[str, bytes], boundary: str = "----parts") -> bytes:
    body = b""
    for name, data in members.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


@contextmanager
def datasets_in_memory(**options) -> Iterator[tuple[Datasets, Path]]:
    """No datasets yet, and the folder that they are kept in: in memory where that is possible."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="datasets-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        opened = database.connect(database.location("", folder))
        try:
            yield Datasets(opened, files.files("", folder), **options), folder
        finally:
            opened.close()


def add(datasets: Datasets, body: bytes, boundary: bytes | None = None, **options):
    """The dataset of an upload."""
    with datasets.receive(boundary) as incoming:
        incoming.write(body)
        return datasets.add(incoming, **options)
