"""The use case: a dataset of pictures that the resident model makes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from darkroom.types.datasets import Dataset, DatasetFault, SynthesisProgress, SynthesizeRequest
from service.dataset_library import DatasetLibrary
from service.datasets.recipes import PlannedPicture, filled_in, planned
from service.engine import presets
from service.engine.engine import Engine
from service.errors import Overloaded, UnusableImage
from service.generation import Generation, outcome

PATIENCE_SECONDS: Final = 600.0
"""How long one picture may wait for room in a queue that others have filled."""

Made = tuple[str, bytes, str] | DatasetFault
Event = SynthesisProgress | Dataset


class Synthesis:
    """Draws datasets. `engine` answers the resident engine, or raises `ModelLoading` or `EngineStopped`."""

    def __init__(
        self,
        generation: Generation,
        library: DatasetLibrary,
        engine: Callable[[], Engine],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generation, self._library, self._engine = generation, library, engine
        self._sleep, self._now = sleep, now

    def filled_in(self, request: SynthesizeRequest) -> SynthesizeRequest:
        """The request with every default for the resident model. Raises InvalidOption, ModelLoading, EngineStopped."""
        return filled_in(request, pocket=self._engine().models.name == presets.POCKET.name)

    async def synthesize(self, request: SynthesizeRequest) -> Dataset:
        """The dataset of this request, once all its pictures are made; cancelling frees the device at once.

        Raises:
            What `events` raises.
        """
        return await outcome(self.events(request), Dataset)

    async def events(self, request: SynthesizeRequest) -> AsyncGenerator[Event]:
        """How far it is, from none made to all, and at last the dataset; closing it frees the device.

        What the resident weights have made before is found again and not made twice; a service that does nothing
        else meanwhile makes the same again to the bit. A picture that the model could not make (black, flat, not a
        number) is left out, and is among the faults.

        Raises:
            InvalidOption, InvalidPrompt: the request cannot be done.
            Overloaded: others kept the queue full for too long.
            EmptyDataset: no picture could be used.
            DarkroomError: as `Generation.events`; nothing was kept.
        """
        filled = self.filled_in(request)
        plan = planned(filled)
        model = self._engine().models.fingerprint
        if (found := await self._library.made_by(filled, model)) is not None:
            yield found
            return
        made: list[Made] = []
        yield SynthesisProgress(done=0, total=len(plan))
        # One by one. Together they would take a fifth less time, but a picture that shares its forward passes is
        # rounded otherwise, and whether it does would depend on the moment: the same seeds gave another dataset.
        for picture in plan:
            made.append(await self._made(picture))
            yield SynthesisProgress(done=len(made), total=len(plan))
        yield await self._library.add_pictures(
            [one for one in made if not isinstance(one, DatasetFault)],
            name=request.name,
            synthesis=filled,
            model=model,
            faults=[one for one in made if isinstance(one, DatasetFault)],
        )

    async def _made(self, picture: PlannedPicture) -> Made:
        give_up_at = self._now() + PATIENCE_SECONDS
        while True:
            try:
                generated = await self._generation.generate(picture.request)
            except Overloaded as busy:
                if self._now() + busy.retry_after_seconds > give_up_at:
                    raise
                await self._sleep(busy.retry_after_seconds)
            except UnusableImage as exc:
                return DatasetFault(file=picture.file, code="picture.unusable", message=str(exc))
            else:
                return picture.file, generated.images[0].data, picture.caption
