"""What `FakeDarkroom` answers: coloured tiles that depend on prompt and seed, PNGs written without Pillow."""

import base64
import hashlib
import importlib.util
import io
import struct
import zlib
from collections.abc import Sequence

from darkroom.types import (
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    ImageFormat,
    LoraReceipt,
    LoraServed,
    LoraVersion,
    PictureSettings,
    PromptTokens,
    Receipt,
    Refiner,
    RefinerReceipt,
    Timings,
    TokenCount,
    TokenReport,
)

_EDGE = 64
"""Pixels of a picture whose request names no size."""
_TILES = 8
"""Along each edge; every size that a request may have is a multiple of it."""
_SHAPING = {*PictureSettings.model_fields} - {"width", "height"}


def can_encode(image_format: ImageFormat) -> bool:
    """PNG always; JPEG and WebP where Pillow is installed."""
    return image_format == "png" or importlib.util.find_spec("PIL") is not None


def generated(request: GenerateRequest, number: int, loras: Sequence[LoraVersion] = ()) -> GenerateResponse:
    """The answer to a request whose refs mean these `loras`; `number` tells apart those that leave the seed open."""
    drawn = int.from_bytes(hashlib.sha256(f"{number} {request.prompt}".encode()).digest()[:8], "big")
    first_seed = drawn if request.seed is None else request.seed
    seeds = [(first_seed + index) % 2**64 for index in range(request.num_images)]
    return GenerateResponse(
        id=f"fake-{number}",
        model="fake",
        images=[_image(request, index, seed, loras) for index, seed in enumerate(seeds)],
        timings=Timings(queue=0, encode=0, base=0, refiner=0, decode=0, encode_image=0, total=0),
        tokens=_tokens(request) if request.tokens else None,
        loras=[LoraServed(ref=lora.ref, digest=lora.digest, tier="host") for lora in loras],
    )


def preview(request: GenerateRequest, seed: int) -> bytes:
    """The same picture at one pixel a tile, as a PNG."""
    return png(tiles(request, seed))


def tiles(request: GenerateRequest, seed: int) -> list[bytes]:
    """The same as rows of RGB."""
    return _pixels(_recipe(request, seed), _TILES, _TILES)


def png(rows: list[bytes]) -> bytes:
    """An 8-bit RGB PNG (ISO/IEC 15948): header, one run of deflated rows with filter 0 each, end."""
    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    deflated = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", deflated), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _recipe(request: GenerateRequest, seed: int) -> str:
    """What a picture depends on, its size apart."""
    settings = request.model_dump_json(include=_SHAPING)
    return f"{seed} {request.prompt} {settings}"


def _image(request: GenerateRequest, index: int, seed: int, loras: Sequence[LoraVersion]) -> GeneratedImage:
    width, height = request.width or _EDGE, request.height or _EDGE
    pixels = _pixels(_recipe(request, seed), width, height)
    return GeneratedImage(
        index=index,
        seed=seed,
        b64=base64.b64encode(_encoded(pixels, width, height, request)).decode(),
        media_type=f"image/{request.output.format}",
        width=width,
        height=height,
        receipt=_receipt(request, seed, width, height, loras),
    )


def _pixels(recipe: str, width: int, height: int) -> list[bytes]:
    """Rows of RGB: a chequerboard of 8 x 8 colours."""
    colours = hashlib.shake_256(recipe.encode()).digest(3 * _TILES * _TILES)
    rows = []
    for tile_row in range(_TILES):
        tiles = [colours[3 * (tile_row * _TILES + column) :][:3] for column in range(_TILES)]
        rows += [b"".join(tile * (width // _TILES) for tile in tiles)] * (height // _TILES)
    return rows


def _encoded(rows: list[bytes], width: int, height: int, request: GenerateRequest) -> bytes:
    if request.output.format == "png":
        return png(rows)
    import PIL.Image

    file = io.BytesIO()
    picture = PIL.Image.frombytes("RGB", (width, height), b"".join(rows))
    picture.save(file, request.output.format, quality=request.output.quality)
    return file.getvalue()


def _receipt(
    request: GenerateRequest, seed: int, width: int, height: int, loras: Sequence[LoraVersion]
) -> Receipt:
    steps = request.num_inference_steps
    refiner = request.refiner or Refiner()
    base_steps = round(steps * refiner.denoising_end) if refiner.enabled else steps
    return Receipt(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=seed,
        width=width,
        height=height,
        num_inference_steps=steps,
        base_steps=base_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        refiner=RefinerReceipt(
            denoising_end=refiner.denoising_end,
            num_inference_steps=steps - base_steps,
            aesthetic_score=refiner.aesthetic_score,
            negative_aesthetic_score=refiner.negative_aesthetic_score,
        )
        if refiner.enabled
        else None,
        original_size=request.original_size or (height, width),
        crops_coords_top_left=request.crops_coords_top_left,
        target_size=request.target_size or (height, width),
        negative_original_size=request.negative_original_size,
        negative_crops_coords_top_left=request.negative_crops_coords_top_left,
        negative_target_size=request.negative_target_size,
        loras=[
            LoraReceipt(
                **use.model_dump(exclude={"ref"}), ref=lora.ref, digest=lora.digest, auto_v3=lora.auto_v3
            )
            for use, lora in zip(request.loras, loras, strict=True)
        ],
        model="fake",
        model_fingerprint="0" * 64,
        versions={},
    )


def _tokens(request: GenerateRequest) -> TokenReport:
    def count(text: str) -> PromptTokens:
        words = len(text.split())
        one = TokenCount(tokens=words, chunks=max(1, -(-words // 75)))
        return PromptTokens(text_encoder=one, text_encoder_2=one)

    negative = None if request.negative_prompt is None else count(request.negative_prompt)
    return TokenReport(prompt=count(request.prompt), negative_prompt=negative)
