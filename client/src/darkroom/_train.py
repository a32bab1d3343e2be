"""`client.train`: train jobs. `_async_train` is its twin: change both."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Unpack

from darkroom import _train_calls
from darkroom._callers import Caller, Listener
from darkroom._errors import TrainFailed
from darkroom._paging import every
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


class TrainJobs:
    """Trainings of LoRAs. Each is a job on the service: it goes on when you leave, and when the service restarts.

    Where a method takes a job, its id will do; what it gives is the job as it stands then.

    >>> job = client.train.negative("wrong", recipe={"max_train_steps": 500})
    >>> client.train.wait(job).lora
    'wrong@1'
    >>> client.generate("a fox", negative_prompt="wrong", loras=["wrong"], seed=7).image
    <Image 64×64 image/png, 0.4 kB, seed 7>
    """

    def __init__(self, call: Caller, listen: Listener) -> None:
        self._call, self._listen = call, listen

    def subject(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        instance_prompt: str | None = None,
        class_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a thing or a style from its pictures (Dreambooth).

        `instance_prompt` is the caption of pictures without one, and what calls on the LoRA; with a `class_prompt`
        pictures of the class are made and trained on as well, so that it is not forgotten. `recipe` takes a
        `TrainRecipe` or a dict of its fields; the others are those of `TrainRequest`.

        Raises: `InvalidRequest`, before anything is sent where a value cannot be right, or where the training would
        not fit the service's device.
        """
        taught = _train_calls.Taught(
            dataset=dataset, instance_prompt=instance_prompt, class_prompt=class_prompt
        )
        return self.create(_train_calls.request_of("subject", name, taught, options))

    def negative(
        self,
        name: str,
        *,
        dataset: Dataset | str | None = None,
        synthesis: SynthesizeRequest | None = None,
        instance_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn what is wrong with bad pictures, as a word for negative prompts: `wrong`.

        Without a `dataset` of bad pictures the service makes its own, by its recipe or by your `synthesis`.
        """
        taught = _train_calls.Taught(dataset=dataset, synthesis=synthesis, instance_prompt=instance_prompt)
        return self.create(_train_calls.request_of("negative", name, taught, options))

    def embedding(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        token: str,
        instance_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a new word, and nothing else (textual inversion). Captions, or the prompt, contain it."""
        taught = _train_calls.Taught(dataset=dataset, token=token, instance_prompt=instance_prompt)
        return self.create(_train_calls.request_of("embedding", name, taught, options))

    def pivotal(
        self,
        name: str,
        dataset: Dataset | str,
        *,
        token: str,
        instance_prompt: str | None = None,
        class_prompt: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainJob:
        """Begin to learn a new word together with a LoRA. Captions, or the prompt, contain it."""
        taught = _train_calls.Taught(
            dataset=dataset, token=token, instance_prompt=instance_prompt, class_prompt=class_prompt
        )
        return self.create(_train_calls.request_of("pivotal", name, taught, options))

    def create(self, request: TrainRequest) -> TrainJob:
        """Begin the job of a request that is already made. It is sent again after a fault, and makes one job."""
        return self._call(_train_calls.create(request, uuid.uuid4().hex))

    def estimate(self, request: TrainRequest) -> TrainEstimate:
        """What a job would need, and whether it fits; none is begun."""
        return self._call(_train_calls.estimate(request))

    def get(self, job: TrainJob | str) -> TrainJob:
        """A job as it stands. Raises: `NotFound`."""
        return self._call(_train_calls.get(job))

    def list(self, *, state: JobState | None = None) -> Iterator[TrainJob]:
        """All jobs, or those in one state, the newest first, page by page as you go."""
        yield from every(lambda cursor: self._call(_train_calls.page(state=state, cursor=cursor)))

    def cancel(self, job: TrainJob | str) -> TrainJob:
        """Have a job end, within a step where it runs. One that has ended stays as it is. Raises: `NotFound`."""
        return self._call(_train_calls.cancel(job))

    def retry(self, job: TrainJob | str) -> TrainJob:
        """Have a job that failed or was cancelled go on from its last checkpoint.

        Raises: `Conflict` where it has not ended so, `NotFound`.
        """
        return self._call(_train_calls.retry(job))

    def events(self, job: TrainJob | str, *, after: int = 0) -> Iterator[JobEvent]:
        """What happens to a job, from its first event, or the one `after` that id, until its end.

        Where the connection breaks, or the service restarts, it goes on after the last event that came. Raises:
        `NotFound`; whatever stays wrong for ten minutes.

        >>> job = client.train.negative("wrong")
        >>> [event.state for event in client.train.events(job) if event.type == "state"]
        ['queued', 'running', 'succeeded']
        """
        with closing(self._listen(_train_calls.followed(job), after, None)) as listening:
            for told in listening:
                if isinstance(told, JobEvent):
                    yield told

    def wait(
        self,
        job: TrainJob | str,
        *,
        progress: bool | OnEvent[JobEvent] = True,
        timeout_seconds: float | None = None,
    ) -> TrainJob:
        """A job once it has succeeded; `.lora` is what was published.

        Meanwhile a line on a terminal shows how far it is; `progress=False` leaves it out, and a function is called
        with every event.

        Raises: `TrainFailed` where it fails or is cancelled, `Timeout` when the time is up (the job goes on),
        `NotFound`.
        """
        found = self.get(job)
        events = self._listen(_train_calls.followed(job), 0, timeout_seconds)
        with shown(progress, TrainLine(found)) as hear, closing(events) as listening:
            for told in listening:
                if isinstance(told, JobEvent):
                    hear(told)
                else:
                    found = told
        if found.state != "succeeded":
            raise TrainFailed(found)
        return found

    def artifacts(self, job: TrainJob | str) -> Sequence[TrainArtifact]:
        """The files that a job has made so far: samples, checkpoints, the loss curve, the evaluation card."""
        return self._call(_train_calls.artifacts(job))

    def artifact(self, job: TrainJob | str, name: str) -> bytes:
        """The bytes of one of them, `loss.png`. Raises: `NotFound`."""
        return self._call(_train_calls.artifact(job, name))

    def download(
        self, job: TrainJob | str, name: str, path: str | PathLike[str], *, progress: Moved | None = None
    ) -> Path:
        """One of them as a file, and where it is now: at `path`, or in that folder under its own name.

        It is there whole or not at all. `progress(received, total)` hears of the bytes. Raises: `NotFound`.
        """
        digest = _train_calls.named(self.artifacts(job), job, name).digest
        with Download(target(Path(path), name), digest=digest, progress=progress) as download:
            self._call(_train_calls.download(job, name, download))
            return download.finish()
