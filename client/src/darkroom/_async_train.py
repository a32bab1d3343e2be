"""`client.train` of `AsyncDarkroom`. `_train` is its twin: change both."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from os import PathLike
from pathlib import Path
from typing import Unpack

from darkroom import _train_calls
from darkroom._callers import AsyncCaller, AsyncListener
from darkroom._errors import TrainFailed
from darkroom._paging import async_every
from darkroom._progress_bar import OnEvent, TrainLine, shown
from darkroom._train_calls import TrainOptions
from darkroom._transfers import Download, target
from darkroom._transfers import Told as Moved
from darkroom.types import (
    Dataset,
    JobEvent,
    JobState,
    SynthesizeRequest,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainRequest,
)


class AsyncTrainJobs:
    """`TrainJobs` for asyncio: the same methods and arguments, awaited; `list` and `events` with `async for`."""

    def __init__(self, call: AsyncCaller, listen: AsyncListener) -> None:
        self._call, self._listen = call, listen

    async def subject(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        instance_prompt: str | None = None,
        class_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a thing or a style from its pictures, as `TrainJobs.subject`."""
        taught = _train_calls.Taught(
            dataset=dataset, instance_prompt=instance_prompt, class_prompt=class_prompt
        )
        return await self.create(_train_calls.request_of("subject", name, taught, options))

    async def negative(
        self,
        name: str,
        *,
        dataset: Dataset | str | None = None,
        synthesis: SynthesizeRequest | None = None,
        instance_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn what is wrong with bad pictures, as `TrainJobs.negative`."""
        taught = _train_calls.Taught(dataset=dataset, synthesis=synthesis, instance_prompt=instance_prompt)
        return await self.create(_train_calls.request_of("negative", name, taught, options))

    async def embedding(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        token: str,
        instance_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a new word, and nothing else, as `TrainJobs.embedding`."""
        taught = _train_calls.Taught(dataset=dataset, token=token, instance_prompt=instance_prompt)
        return await self.create(_train_calls.request_of("embedding", name, taught, options))

    async def pivotal(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        token: str,
        instance_prompt: str | None = None,
        class_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a new word together with a LoRA, as `TrainJobs.pivotal`."""
        taught = _train_calls.Taught(
            dataset=dataset, token=token, instance_prompt=instance_prompt, class_prompt=class_prompt
        )
        return await self.create(_train_calls.request_of("pivotal", name, taught, options))

    async def create(self, request: TrainRequest) -> TrainJob:
        """Begin the job of a request that is already made, as `TrainJobs.create`."""
        return await self._call(_train_calls.create(request, uuid.uuid4().hex))

    async def estimate(self, request: TrainRequest) -> TrainEstimate:
        """What a job would need, and whether it fits; none is begun."""
        return await self._call(_train_calls.estimate(request))

    async def get(self, job: TrainJob | str) -> TrainJob:
        """A job as it stands. Raises: `NotFound`."""
        return await self._call(_train_calls.get(job))

    async def list(self, *, state: JobState | None = None) -> AsyncIterator[TrainJob]:
        """All jobs, or those in one state, the newest first, page by page as you go."""
        async for job in async_every(
            lambda cursor: self._call(_train_calls.page(state=state, cursor=cursor))
        ):
            yield job

    async def cancel(self, job: TrainJob | str) -> TrainJob:
        """Have a job end, within a step where it runs. One that has ended stays as it is. Raises: `NotFound`."""
        return await self._call(_train_calls.cancel(job))

    async def retry(self, job: TrainJob | str) -> TrainJob:
        """Have a job that failed or was cancelled go on from its last checkpoint.

        Raises: `Conflict` where it has not ended so, `NotFound`.
        """
        return await self._call(_train_calls.retry(job))

    async def events(self, job: TrainJob | str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job until its end, as `TrainJobs.events`."""
        async with aclosing(self._listen(_train_calls.followed(job), after, None)) as listening:
            async for told in listening:
                if isinstance(told, JobEvent):
                    yield told

    async def wait(
        self,
        job: TrainJob | str,
        *,
        progress: bool | OnEvent[JobEvent] = True,
        timeout_seconds: float | None = None,
    ) -> TrainJob:
        """A job once it has succeeded, as `TrainJobs.wait`; a function that hears of it is not awaited."""
        found = await self.get(job)
        events = self._listen(_train_calls.followed(job), 0, timeout_seconds)
        with shown(progress, TrainLine(found)) as hear:
            async with aclosing(events) as listening:
                async for told in listening:
                    if isinstance(told, JobEvent):
                        hear(told)
                    else:
                        found = told
        if found.state != "succeeded":
            raise TrainFailed(found)
        return found

    async def artifacts(self, job: TrainJob | str) -> Sequence[TrainArtifact]:
        """The files that a job has made so far: samples, checkpoints, the loss curve, the evaluation card."""
        return await self._call(_train_calls.artifacts(job))

    async def artifact(self, job: TrainJob | str, name: str) -> bytes:
        """The bytes of one of them, `loss.png`. Raises: `NotFound`."""
        return await self._call(_train_calls.artifact(job, name))

    async def download(
        self, job: TrainJob | str, name: str, path: str | PathLike[str], *, progress: Moved | None = None
    ) -> Path:
        """One of them as a file, and where it is now: as `TrainJobs.download`."""
        digest = _train_calls.named(await self.artifacts(job), job, name).digest
        with Download(target(Path(path), name), digest=digest, progress=progress) as download:
            await self._call(_train_calls.download(job, name, download))
            return download.finish()
