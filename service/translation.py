"""Between the wire and the engine: a request becomes an order, a picture gets its receipt."""

from collections.abc import Sequence

from darkroom.types import GenerateRequest, Receipt, Refiner, RefinerReceipt
from lora_registry import LoraVersion
from service.engine import schedulers
from service.engine.models import Models
from service.engine.orders import HandOver, Order, Picture
from service.engine.prompts import parse
from service.errors import InvalidOption
from service.lora_orders import lora_orders, lora_receipt

_SEEDS = 2**64


def order_from(
    request: GenerateRequest, models: Models, *, first_seed: int, loras: Sequence[LoraVersion] = ()
) -> Order:
    """The request with every default filled in from the loaded model; image i has the seed `first_seed + i`.

    `loras` are the versions that the refs of the request's LoRAs mean, in their order.

    Raises:
        InvalidPrompt: a prompt's markup cannot be read.
        InvalidOption: the request needs what this service does not have.
    """
    width = request.width or models.default_edge
    height = request.height or models.default_edge
    schedulers.check_steps(request.scheduler, request.num_inference_steps)
    prompt = parse(request.prompt)
    negative = request.negative_prompt
    negative_prompt = None if negative is None else parse(negative, field="negative_prompt")
    hand_over = _hand_over(request.refiner, has_refiner=models.has_refiner)
    return Order(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seeds=tuple((first_seed + index) % _SEEDS for index in range(request.num_images)),
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        hand_over=hand_over,
        original_size=request.original_size or (height, width),
        crops_coords_top_left=request.crops_coords_top_left,
        target_size=request.target_size or (height, width),
        negative_original_size=request.negative_original_size,
        negative_crops_coords_top_left=request.negative_crops_coords_top_left,
        negative_target_size=request.negative_target_size,
        loras=lora_orders(
            request,
            loras,
            models,
            prompts=[said for said in (prompt, negative_prompt) if said is not None],
            base_share=hand_over.denoising_end if hand_over else 1.0,
        ),
        previews=request.previews,
    )


def _hand_over(refiner: Refiner | None, *, has_refiner: bool) -> HandOver | None:
    if refiner is None:
        refiner = Refiner(enabled=has_refiner)
    if not refiner.enabled:
        return None
    if not has_refiner:
        raise InvalidOption(
            "this service keeps no refiner; leave `refiner` out or set `enabled` to false", pointer="/refiner"
        )
    return HandOver(refiner.denoising_end, refiner.aesthetic_score, refiner.negative_aesthetic_score)


def receipt_for(
    request: GenerateRequest, order: Order, picture: Picture, models: Models, versions: dict[str, str]
) -> Receipt:
    """How one picture was made; it names no time and no host, so equal pictures have equal receipts."""
    hand_over = order.hand_over
    return Receipt(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=picture.seed,
        width=order.width,
        height=order.height,
        num_inference_steps=order.num_inference_steps,
        base_steps=picture.base_steps,
        guidance_scale=order.guidance_scale,
        scheduler=order.scheduler,
        refiner=None
        if hand_over is None
        else RefinerReceipt(
            denoising_end=hand_over.denoising_end,
            num_inference_steps=picture.refiner_steps,
            aesthetic_score=hand_over.aesthetic_score,
            negative_aesthetic_score=hand_over.negative_aesthetic_score,
        ),
        original_size=order.original_size,
        crops_coords_top_left=order.crops_coords_top_left,
        target_size=order.target_size,
        negative_original_size=order.negative_original_size,
        negative_crops_coords_top_left=order.negative_crops_coords_top_left,
        negative_target_size=order.negative_target_size,
        loras=[lora_receipt(lora) for lora in order.loras],
        model=models.name,
        model_fingerprint=models.fingerprint,
        versions=versions,
    )
