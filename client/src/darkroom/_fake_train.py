"""The train jobs of `FakeDarkroom`: over as soon as they are begun, and what they publish can be used."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from pydantic import ValidationError

from darkroom._errors import refusal_of
from darkroom._fake_answers import answered, listed, refused, told
from darkroom._fake_loras import Answer, Asked, FakeLoras, Refused
from darkroom._fake_pictures import preview
from darkroom.types import (
    EvaluationCard,
    GenerateRequest,
    JobEvent,
    LoraLineage,
    LoraVersion,
    Problem,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainJobPage,
    TrainRequest,
)

_WHEN = datetime(2024, 1, 1, tzinfo=UTC)
_STEPS, _RANK = 500, 4
_REPORTS = 5
"""Events of progress that a job has."""


@dataclass
class _Kept:
    job: TrainJob
    events: list[JobEvent] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class FakeTraining:
    """All train jobs of one fake, whose LoRAs are those."""

    def __init__(self, loras: FakeLoras) -> None:
        self._loras = loras
        self._kept: dict[str, _Kept] = {}
        self._keys: dict[str, tuple[bytes, str]] = {}
        self._ids = itertools.count(1)
        self.failures: list[Problem] = []
        """What the next jobs fail with, half-way."""

    def answer(self, asked: Asked) -> Answer:
        """What the service would say.

        Raises:
            Refused
        """
        parts = [unquote(part) for part in asked.path.removeprefix("/v1/train-jobs").strip("/").split("/")]
        match asked.method, parts:
            case "POST", [""]:
                return self._create(_request(asked), asked)
            case "POST", ["estimate"]:
                return answered(_estimate(_filled_in(_request(asked))))
            case "GET", [""]:
                return answered(TrainJobPage(items=self._listed(asked.query.get("state", []))))
            case "GET", [job_id]:
                return answered(self._find(job_id).job)
            case "DELETE", [job_id]:
                return answered(self._find(job_id).job)
            case "POST", [job_id, "retry"]:
                return self._retry(self._find(job_id))
            case "GET", [job_id, "events"]:
                kept = self._find(job_id)
                return told(kept.events, kept.job, asked)
            case "GET", [job_id, "artifacts"]:
                return listed(self._find(job_id).job.artifacts)
            case "GET", [job_id, "artifacts", *name]:
                return _file(self._find(job_id), "/".join(name))
        raise refused(404, "not_found", "nothing is served at this path")

    def _create(self, request: TrainRequest, asked: Asked) -> Answer:
        key = asked.headers.get("idempotency-key", "")
        body, known = self._keys.get(key, (b"", ""))
        if known and body != asked.body:
            raise refused(422, "idempotency_key_reused", f"Idempotency-Key '{key}' was used for another job")
        if known:
            return answered(self._find(known).job, 202, {"Idempotent-Replayed": "true"})
        request = _filled_in(request)
        job = TrainJob(
            id=f"train-{next(self._ids)}",
            kind=request.kind,
            name=request.name,
            state="queued",
            stage="waiting",
            step=0,
            max_train_steps=request.recipe.max_train_steps or _STEPS,
            dataset=request.dataset,
            request=request,
            created_at=_WHEN,
        )
        kept = self._kept[job.id] = _Kept(job)
        if key:
            self._keys[key] = (asked.body, job.id)
        self._run(kept)
        return answered(job, 202, {"Location": f"/v1/train-jobs/{job.id}"})

    def _retry(self, kept: _Kept) -> Answer:
        if kept.job.state != "failed":
            raise refused(409, "job_not_retryable", f"train job '{kept.job.id}' is {kept.job.state}")
        _change(kept, state="queued", stage="waiting", problem=None)
        queued = kept.job
        self._run(kept)
        return answered(queued, 202)

    def _run(self, kept: _Kept) -> None:
        """Everything that happens to a job, at once."""
        job, failure = kept.job, self.failures.pop(0) if self.failures else None
        _tell(kept, "state", state="queued")
        _change(kept, state="running", stage="training", started_at=_WHEN, attempts=job.attempts + 1)
        _tell(kept, "state", state="running")
        _tell(kept, "stage", stage="training")
        steps = [job.max_train_steps * report // _REPORTS for report in range(1, _REPORTS + 1)]
        for step in sorted({*steps} - {0}):
            if failure is not None and 2 * step > job.max_train_steps:
                _change(kept, state="failed", stage="done", problem=failure, finished_at=_WHEN)
                _tell(kept, "state", state="failed", message=failure.detail)
                return
            _change(
                kept, step=step, loss=round(0.1 / step, 6), learning_rate=job.request.recipe.learning_rate
            )
            _tell(kept, "progress", loss=kept.job.loss, steps_per_second=10.0, eta_seconds=0.0)
        version, weights = self._publish(kept.job)
        for name, media_type, data in _made(kept.job, weights):
            _keep(kept, name, media_type, data)
        ended: dict[str, Any] = {"lora": version.ref, "digest": version.digest, "finished_at": _WHEN}
        _change(kept, state="succeeded", stage="done", **ended)
        _tell(kept, "state", state="succeeded")

    def _publish(self, job: TrainJob) -> tuple[LoraVersion, bytes]:
        """A LoRA that depends on the request."""
        request = job.request
        weights = b"\x02\0\0\0\0\0\0\0{}" + request.model_dump_json(exclude={"alias", "tags"}).encode()
        query = {
            "alias": [request.alias] if request.alias else [],
            "tag": request.tags,
            "trigger": [words for words in (request.token or request.instance_prompt,) if words],
            "description": [request.description],
        }
        lineage = LoraLineage(
            origin="train-job",
            code="fake",
            job=job.id,
            dataset=job.dataset,
            step=job.max_train_steps,
            seed=request.recipe.seed,
            request=request.model_dump(mode="json", exclude={"recipe": {"sample_prompts"}}),
        )
        asked = Asked("POST", f"/v1/loras/{request.name}/versions", query, {}, weights, lineage)
        return LoraVersion.model_validate_json(self._loras.answer(asked).body), weights

    def _find(self, job_id: str) -> _Kept:
        if job_id not in self._kept:
            raise refused(404, "job_not_found", f"train job '{job_id}' was not found")
        return self._kept[job_id]

    def _listed(self, states: Sequence[str]) -> list[TrainJob]:
        jobs = [kept.job for kept in reversed(self._kept.values())]
        return [job for job in jobs if not states or job.state in states]


def _request(asked: Asked) -> TrainRequest:
    try:
        return TrainRequest.model_validate_json(asked.body)
    except ValidationError as error:
        raise Refused(refusal_of(error)) from None


def _filled_in(request: TrainRequest) -> TrainRequest:
    recipe = request.recipe
    rank = recipe.rank or _RANK
    filled = recipe.model_copy(
        update={
            "max_train_steps": recipe.max_train_steps or _STEPS,
            "rank": rank,
            "alpha": recipe.alpha or float(rank),
            "learning_rate": recipe.learning_rate or 1e-4,
        }
    )
    prompt = request.instance_prompt or ("wrong" if request.kind == "negative" else None)
    return request.model_copy(update={"recipe": filled, "instance_prompt": prompt})


def _estimate(request: TrainRequest) -> TrainEstimate:
    steps = request.recipe.max_train_steps or _STEPS
    return TrainEstimate(recipe=request.recipe, pictures=1, steps=steps, memory_bytes=0, fits=True)


def _made(job: TrainJob, weights: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Name, media type and bytes of the files that a job leaves."""
    prompt = job.request.instance_prompt or job.name
    picture = preview(GenerateRequest(prompt=prompt), 0)
    yield f"samples/{job.step:06}-0.png", "image/png", picture
    yield f"checkpoints/{job.step:06}.safetensors", "application/octet-stream", weights
    yield "loss.png", "image/png", picture
    if job.request.evaluate:
        card = EvaluationCard(
            chosen_step=job.step,
            chosen_weight=1.0,
            reason="the fake has no other",
            cells=[],
            prompts=[prompt],
            seeds=[0],
        )
        yield "card.json", "application/json", card.model_dump_json().encode()


def _change(kept: _Kept, **fields: Any) -> None:
    kept.job = kept.job.model_copy(update=fields)


def _tell(kept: _Kept, type: str, **fields: Any) -> None:
    said = {"id": len(kept.events) + 1, "type": type, "at": _WHEN, "step": kept.job.step, **fields}
    kept.events.append(JobEvent.model_validate(said))


def _keep(kept: _Kept, name: str, media_type: str, data: bytes) -> None:
    artifact = TrainArtifact(
        name=name,
        media_type=media_type,
        size_bytes=len(data),
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        step=kept.job.step,
        created_at=_WHEN,
    )
    kept.files[name] = data
    _change(kept, artifacts=[*kept.job.artifacts, artifact])
    _tell(kept, "artifact", artifact=name)


def _file(kept: _Kept, name: str) -> Answer:
    if name not in kept.files:
        raise refused(404, "artifact_not_found", f"train job '{kept.job.id}' has no file '{name}'")
    (artifact,) = (one for one in kept.job.artifacts if one.name == name)
    headers = {"Content-Type": artifact.media_type, "ETag": f'"{artifact.digest}"'}
    return Answer(200, kept.files[name], headers)
