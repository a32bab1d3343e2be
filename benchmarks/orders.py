"""The jobs that both sides are given, and how an engine is asked to do them."""

import queue
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from darkroom.types import Output, Receipt
from service import images
from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.orders import Done, Event, Failed, HandOver, Order, Progress
from service.engine.prompts import parse

HAND_OVER = HandOver(denoising_end=0.8, aesthetic_score=6.0, negative_aesthetic_score=2.5)


def an_order(
    prompt: str, *, edge: int, seeds: Sequence[int] = (1,), steps: int = 20, **changes: Any
) -> Order:
    """Base and refiner at 0.8 with guidance 5 by Euler, square, without a negative prompt, unless changed."""
    fields: dict[str, Any] = {
        "prompt": parse(prompt),
        "negative_prompt": None,
        "seeds": tuple(seeds),
        "width": edge,
        "height": edge,
        "num_inference_steps": steps,
        "guidance_scale": 5.0,
        "scheduler": "euler",
        "hand_over": HAND_OVER,
        "crops_coords_top_left": (0, 0),
        "negative_original_size": None,
        "negative_crops_coords_top_left": (0, 0),
        "negative_target_size": None,
    }
    fields |= changes
    size = (fields["height"], fields["width"])
    return Order(**{"original_size": size, "target_size": size} | fields)


Listening = Callable[[Progress], None]


def run(
    engine: Engine,
    *orders: Order,
    listening: Listening = lambda _progress: None,
    adapters: Mapping[str, Arranged] | None = None,
) -> list[Done]:
    """All orders at once, waited for; raises what the first failure was. `adapters` are of all their LoRAs."""
    queues: list[queue.SimpleQueue[Event]] = []
    for order in orders:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        queues.append(events)

        def hear(event: Event, events: queue.SimpleQueue[Event] = events) -> None:
            if isinstance(event, Progress):
                listening(event)
            else:
                events.put(event)

        engine.submit(order, hear, adapters)
    endings = [events.get() for events in queues]
    for ending in endings:
        if isinstance(ending, Failed):
            raise ending.error
    return [ending for ending in endings if isinstance(ending, Done)]


def files(order: Order, done: Done) -> list[bytes]:
    """The order's pictures as the service would encode them by default: PNG with the whole recipe."""
    return [
        images.encode(picture.pixels_HWC, Output(), _receipt(order, picture.seed)).data
        for picture in done.pictures
    ]


def pillow_files(pictures: Sequence[Image.Image]) -> list[bytes]:
    """The pictures as `Image.save` encodes them."""
    encoded = []
    for picture in pictures:
        file = BytesIO()
        picture.save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


def _receipt(order: Order, seed: int) -> Receipt:
    return Receipt(
        prompt=order.prompt.plain,
        negative_prompt=None,
        seed=seed,
        width=order.width,
        height=order.height,
        num_inference_steps=order.num_inference_steps,
        base_steps=order.num_inference_steps,
        guidance_scale=order.guidance_scale,
        scheduler=order.scheduler,
        refiner=None,
        original_size=order.original_size,
        crops_coords_top_left=order.crops_coords_top_left,
        target_size=order.target_size,
        negative_original_size=order.negative_original_size,
        negative_crops_coords_top_left=order.negative_crops_coords_top_left,
        negative_target_size=order.negative_target_size,
        model="benchmark",
        model_fingerprint="0" * 64,
        versions={},
    )
