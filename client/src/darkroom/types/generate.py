"""`POST /v1/generate`: images from a prompt. Field names are diffusers' own."""

from typing import Annotated, Literal

from pydantic import Field

from darkroom.types.common import Request, Response
from darkroom.types.loras import MAX_LORAS, LoraReceipt, LoraServed, LoraUse

SchedulerName = Literal[
    "euler",
    "euler_karras",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "deis",
    "ddim",
    "ddpm",
    "unipc",
    "lcm",
]
ImageFormat = Literal["png", "jpeg", "webp"]
MetadataLevel = Literal["none", "basic", "full"]

MAX_EDGE = 2048
"""Longest side of an image, in pixels; so the largest image has 4.2 megapixels."""
MAX_STEPS = 100
MAX_IMAGES = 8
MAX_PROMPT_CHARACTERS = 4000

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Edge = Annotated[int, Field(ge=32, le=MAX_EDGE, multiple_of=8)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Size = Annotated[tuple[Annotated[int, Field(ge=0, le=16384)], Annotated[int, Field(ge=0, le=16384)]], Field()]


class Refiner(Request):
    """Whether and when the refiner takes over, and the aesthetic scores it is conditioned on."""

    enabled: bool = True
    denoising_end: Fraction = 0.8
    """Share of the noise schedule that the base does; the refiner does the rest (SDXL's ensemble of experts)."""
    aesthetic_score: Annotated[float, Field(ge=0, le=10)] = 6.0
    negative_aesthetic_score: Annotated[float, Field(ge=0, le=10)] = 2.5


class Output(Request):
    """How images are encoded and what they say about themselves."""

    format: ImageFormat = "png"
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """For JPEG and WebP; PNG is lossless and has none."""
    metadata: MetadataLevel = "full"
    """`none`: bare pixels. `basic`: the parameters text that A1111 reads and the IPTC mark of generated media.
    `full`: those and the JSON receipt."""


class PictureSettings(Request):
    """What shapes a picture beside its prompt and its seed: what two pictures may differ in when they are compared."""

    negative_prompt: Prompt | None = None
    """`None` and `""` differ on SDXL: `None` gives zeroed embeddings on the base, `""` an encoded empty text."""
    width: Edge | None = None
    """Pixels, a multiple of 8. Default: the model's own size."""
    height: Edge | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    guidance_scale: Annotated[float, Field(ge=0.0, le=50.0)] = 7.5
    """1 and below switch guidance off, and with it the negative prompt."""
    scheduler: SchedulerName = "euler"
    refiner: Refiner | None = None
    """Default: the refiner takes over at 0.8 where the service has one."""
    loras: Annotated[tuple[LoraUse, ...], Field(max_length=MAX_LORAS)] = ()
    """LoRAs and embeddings of the registry, in order. They bend the base and its text encoders, never the refiner."""
    original_size: Size | None = None
    """(height, width) that the base is told the training image had. Default: the size of the image."""
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None


class GenerateRequest(PictureSettings):
    """One order for images that share everything but their seeds: image *i* uses `seed + i`."""

    prompt: Annotated[Prompt, Field(min_length=1)]
    """Compel syntax: `(phrase)++`, `(phrase)1.3`, `word-`. Literal parentheses are written `\\(` and `\\)`."""
    seed: Seed | None = None
    """64 bits. Drawn when absent, and returned always."""
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    output: Output = Output()
    previews: bool = False
    """Send a small picture of every step. Only a stream of events (`Accept: text/event-stream`) can carry them."""
    tokens: bool = False
    """Ask for a report of how many tokens and chunks each text encoder saw."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] | None = None


class RefinerReceipt(Response):
    """The refiner's part in an image."""

    denoising_end: float
    num_inference_steps: int
    """Steps that the refiner did."""
    aesthetic_score: float
    negative_aesthetic_score: float


class Receipt(Response):
    """How one image was made: send it again and get the same picture."""

    prompt: str
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    num_inference_steps: int
    base_steps: int
    """Steps that the base did."""
    guidance_scale: float
    scheduler: str
    refiner: RefinerReceipt | None
    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]
    negative_original_size: tuple[int, int] | None
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int] | None
    model: str
    loras: list[LoraReceipt] = Field(default_factory=list)
    model_fingerprint: str
    """sha256 over the weights in use, so that two services can be compared."""
    versions: dict[str, str]


class GeneratedImage(Response):
    """One finished image."""

    index: int
    seed: int
    b64: str
    """The encoded file, base64."""
    media_type: str
    width: int
    height: int
    receipt: Receipt


class TokenCount(Response):
    """What one text encoder saw of one prompt."""

    tokens: int
    """Without start, end and padding."""
    chunks: int
    """Windows of 77 tokens."""


class PromptTokens(Response):
    text_encoder: TokenCount
    text_encoder_2: TokenCount


class TokenReport(Response):
    prompt: PromptTokens
    negative_prompt: PromptTokens | None


class Timings(Response):
    """Seconds by stage. `base` and `refiner` are shared fairly with whoever was in the same batch."""

    fetch: float = 0.0
    """Until the LoRAs were in the service's memory."""
    queue: float
    encode: float
    base: float
    refiner: float
    decode: float
    encode_image: float
    total: float


class GenerateResponse(Response):
    id: str
    model: str
    images: list[GeneratedImage]
    timings: Timings
    tokens: TokenReport | None = None
    loras: list[LoraServed] = Field(default_factory=list)
    """What the refs of the request meant, in their order."""
