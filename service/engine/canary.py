"""The canary: a first picture that shows that the engine can make one, and teaches it what work costs."""

import queue
import time
from dataclasses import dataclass

import numpy as np

from service.engine.engine import Engine
from service.engine.orders import Done, Event, Failed, HandOver, Order
from service.engine.prompts import parse

PROMPT = "a red circle on a blue background"
STEPS = 6


def order(engine: Engine) -> Order:
    """A small, fixed order that goes through every part that is resident, at the model's own size."""
    edge = engine.models.default_edge
    size = (edge, edge)
    return Order(
        prompt=parse(PROMPT),
        negative_prompt=None,
        seeds=(0,),
        width=edge,
        height=edge,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        scheduler="euler",
        hand_over=HandOver(0.5, 6.0, 2.5) if engine.models.has_refiner else None,
        original_size=size,
        crops_coords_top_left=(0, 0),
        target_size=size,
        negative_original_size=None,
        negative_crops_coords_top_left=(0, 0),
        negative_target_size=None,
    )


@dataclass(frozen=True)
class Developed:
    """The canary picture of a warm engine, and the seconds that it took."""

    pixels_HWC: np.ndarray
    seconds: float


def develop(engine: Engine) -> Developed:
    """Make the canary picture twice, first to warm up, then to measure.

    Raises:
        UnusableImage: the model gives not-a-number, black or flat. DarkroomError: what else the engine failed with.
    """
    picture(engine)
    engine.costs.forget()  # what a cold start costs says nothing about what comes
    started = time.perf_counter()
    done = picture(engine)
    return Developed(done.pictures[0].pixels_HWC, time.perf_counter() - started)


def picture(engine: Engine) -> Done:
    """One canary picture, waited for.

    Raises:
        DarkroomError: what the engine failed with.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(order(engine), lambda event: events.put(event))
    while True:
        event = events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            return event
