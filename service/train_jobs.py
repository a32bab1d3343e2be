"""The use case of train jobs: refused before they exist where they cannot work, told of while they do."""

import hashlib
from collections.abc import Callable, Sequence

from darkroom.types import (
    Dataset,
    JobEvent,
    JobState,
    SynthesizeRequest,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainJobPage,
    TrainRequest,
)
from service.blocking import ToSend
from service.engine.loras.words import is_said
from service.errors import InvalidOption, InvalidPrompt
from service.following import EVENTS_AT_ONCE, POLL_SECONDS, Followed
from service.jobs.changes import ENDED
from service.jobs.table import JobTable
from service.metrics import Metrics
from service.training.errors import TrainingTooLarge
from service.training.estimates import estimate, too_large
from service.training.recipes import TrainedModel, filled_in


class TrainJobs(Followed[JobTable, JobEvent, TrainJob]):
    """Train jobs for an event loop. What connecting to the table raises, every method may raise."""

    def __init__(
        self,
        connect: Callable[[], JobTable],
        *,
        model: Callable[[], TrainedModel],
        dataset: Callable[[str], Dataset],
        synthesized: Callable[[SynthesizeRequest], int],
        wake: Callable[[], None],
        metrics: Metrics,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`model` raises ModelLoading until there is one, `dataset` DatasetNotFound; `synthesized` counts the
        pictures that a synthesis makes; `wake` tells the launcher that there is something to do, from any thread.
        """
        super().__init__(connect, name="train-jobs", poll_seconds=poll_seconds)
        self._model, self._dataset, self._synthesized, self._wake = model, dataset, synthesized, wake
        self._metrics = metrics

    def table(self) -> JobTable:
        """The connected table, for those who are in a thread of their own. Blocks."""
        return self._connected()

    def drain(self) -> None:
        """Begin no new job, and end all streams of events: another replica goes on with them."""
        super().drain()

    async def create(self, request: TrainRequest, *, key: str = "") -> tuple[TrainJob, bool]:
        """The job that this request is from now on, and whether it was there already, under the same key.

        Raises:
            InvalidOption: of the recipe, or the dataset does not fit the kind of job.
            DatasetNotFound, TrainingTooLarge, KeyReused, ModelLoading, Draining
        """
        self._refuse_while_draining()

        def work() -> tuple[TrainJob, bool]:
            fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
            # Before anything is looked at that may have changed since: its dataset, the model.
            if key and (made := self.table().made_with(key, fingerprint)) is not None:
                return made, True
            full, needed = self._planned(request)
            if not needed.fits:
                raise TrainingTooLarge(too_large(needed))
            job, replayed = self.table().create(
                full, max_train_steps=needed.steps, key=key, fingerprint=fingerprint
            )
            if not replayed:
                self._queued()
            return job, replayed

        return await self._in_thread(work)

    async def estimate(self, request: TrainRequest) -> TrainEstimate:
        """What a job of this request would need. Raises as `create`, but for TrainingTooLarge."""
        return await self._in_thread(lambda: self._planned(request)[1])

    async def get(self, job_id: str) -> TrainJob:
        """A job as it stands. Raises JobNotFound."""
        return await self._asked(lambda table: table.get(job_id))

    async def list(self, *, state: JobState | None = None, limit: int = 50, cursor: str = "") -> TrainJobPage:
        """Jobs, the newest first. Raises InvalidCursor."""
        return await self._asked(lambda table: table.list(state=state, limit=limit, cursor=cursor))

    async def cancel(self, job_id: str) -> TrainJob:
        """A job that is to end: at once where it waits, else at its next step. Raises JobNotFound."""

        def work() -> TrainJob:
            waits = self.table().get(job_id).state == "queued"
            job = self.table().cancel(job_id)
            if waits and job.state == "cancelled":
                self._metrics.train_jobs_total.labels("cancelled").inc()
            return job

        return await self._in_thread(work)

    async def retry(self, job_id: str) -> TrainJob:
        """A job that failed or was cancelled, queued again, to go on from its last checkpoint.

        Raises:
            JobNotFound, JobNotRetryable, Draining
        """
        self._refuse_while_draining()

        def work() -> TrainJob:
            job = self.table().retry(job_id)
            self._queued()
            return job

        return await self._in_thread(work)

    async def open(self, job_id: str, name: str) -> ToSend[TrainArtifact]:
        """A file of a job, to send. Raises JobNotFound, ArtifactNotFound."""
        return await self._opened(lambda table: table.open(job_id, name))

    def _queued(self) -> None:
        """In the thread that has queued a job, which a caller who leaves does not stop."""
        self._metrics.train_jobs_total.labels("queued").inc()
        self._wake()

    def _has_ended(self, store: JobTable, id: str) -> bool:
        return store.get(id).state in ENDED

    def _events_after(self, store: JobTable, id: str, after: int) -> Sequence[JobEvent]:
        return store.events(id, after=after, limit=EVENTS_AT_ONCE)

    def _whole(self, store: JobTable, id: str) -> TrainJob:
        return store.get(id)

    def _planned(self, request: TrainRequest) -> tuple[TrainRequest, TrainEstimate]:
        """The request with its recipe filled in, and what it would need. Blocks."""
        model = self._model()
        full = filled_in(request, model)
        if full.dataset is not None:
            dataset = self._dataset(full.dataset)
            _check_captions(full, dataset)
            picture_count = len(dataset.pictures)
        else:
            picture_count = self._count(full.synthesis or SynthesizeRequest(recipe="wrong"))
        return full, estimate(full, model, picture_count=picture_count)

    def _count(self, synthesis: SynthesizeRequest) -> int:
        try:
            return self._synthesized(synthesis)
        except InvalidPrompt as exc:
            where = f"synthesis/{exc.field}"
            raise InvalidPrompt(exc.message, position=exc.position, field=where) from exc
        except InvalidOption as exc:
            raise InvalidOption(exc.message, pointer=f"/synthesis{exc.pointer}") from exc


def _check_captions(request: TrainRequest, dataset: Dataset) -> None:
    """Let only pictures pass that would be learnt under some words.

    Raises:
        InvalidOption: pictures would be learnt under no words, or the new token under none at all.
    """
    if not dataset.pictures:
        raise InvalidOption("the dataset has no picture", pointer="/dataset")
    mute = [picture.file for picture in dataset.pictures if not picture.caption]
    if mute and request.instance_prompt is None:
        raise InvalidOption(
            f"{len(mute)} of {len(dataset.pictures)} pictures have no caption, '{mute[0][:80]}' for one; give an "
            "`instance_prompt`, or a .txt file beside each picture",
            pointer="/instance_prompt",
        )
    token = request.token
    if token is not None and not mute and not any(is_said(token, p.caption) for p in dataset.pictures):
        raise InvalidOption(
            f"every picture has a caption and none says '{token}', so nothing would be learnt of it; write it into "
            "the captions, or leave them out and give an `instance_prompt`",
            pointer="/token",
        )
