"""The datasets of `FakeDarkroom`, in memory. A picture is what begins as one; its pixels nobody looks at."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import unquote

from pydantic import BaseModel, ValidationError

from darkroom._errors import refusal_of
from darkroom._fake_loras import Answer, Asked, Refused
from darkroom._fake_pictures import preview
from darkroom._fake_streams import frames
from darkroom.types import (
    Dataset,
    DatasetFault,
    DatasetPage,
    DatasetPicture,
    DatasetSummary,
    FieldError,
    GenerateRequest,
    Problem,
    SynthesisProgress,
    SynthesizeRequest,
)

_WHEN = datetime(2024, 1, 1, tzinfo=UTC)
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_EDGE = 64
_WRONG_PROMPTS = tuple(f"a bad picture, {place}" for place in range(13))
_WRONG_GUIDANCE = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0)


class FakeDatasets:
    """All datasets of one fake."""

    def __init__(self) -> None:
        self._kept: dict[str, Dataset] = {}
        self._files: dict[str, bytes] = {}

    def answer(self, asked: Asked) -> Answer:
        """What the service would say.

        Raises:
            Refused
        """
        parts = [unquote(part) for part in asked.path.removeprefix("/v1/datasets").split("/")[1:]]
        match asked.method, parts:
            case "GET", []:
                return _answer(DatasetPage(items=[_summary(one) for one in reversed(self._kept.values())]))
            case "POST", []:
                return self._upload(asked)
            case "POST", ["synthesize"]:
                made = self._synthesize(asked.body)
                return _told(made) if "text/event-stream" in asked.headers.get("accept", "") else made
            case "GET", [id]:
                return _answer(self.get(id))
            case "DELETE", [id]:
                del self._kept[self.get(id).id]
                return Answer(204)
            case "GET", [id, "pictures", place]:
                pictures = self.get(id).pictures
                if not place.isdecimal() or int(place) >= len(pictures):
                    raise _refused(404, "picture_not_found", f"the dataset has no picture {place!r}")
                png = self._files[pictures[int(place)].digest]
                return Answer(200, png, {"Content-Type": "image/png"})
        raise _refused(404, "not_found", "nothing is served at this path")

    def get(self, id: str) -> Dataset:
        """The dataset of this id.

        Raises:
            Refused
        """
        if id not in self._kept:
            raise _refused(404, "dataset_not_found", f"there is no dataset {id!r}")
        return self._kept[id]

    def _upload(self, asked: Asked) -> Answer:
        try:
            with zipfile.ZipFile(io.BytesIO(asked.body)) as archive:
                members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        except zipfile.BadZipFile:
            raise _refused(422, "invalid_archive", "the fake takes zip files only") from None
        said = {key: values[0] for key, values in asked.query.items()}
        captions = {_stem(name): data.decode() for name, data in members if name.endswith(".txt")}
        files: list[tuple[str, bytes, str]] = []
        faults: list[DatasetFault] = []
        for name, data in sorted(members):
            if data.startswith(_STARTS):
                caption = captions.get(_stem(name), "").strip() or said.get("prompt", "")
                files.append((name, data, caption))
            elif not name.endswith((".txt", "/")):
                message = "is no PNG, JPEG or WebP picture"
                faults.append(DatasetFault(file=name, code="picture.unknown", message=message))
        if faults and said.get("invalid") != "skip":
            told = [
                FieldError(pointer="", message=f"{f.file!r} {f.message}", code=f.code) for f in faults[:20]
            ]
            raise _refused(422, "invalid_dataset", told[0].message, *told)
        return self._made(files, said.get("name", ""), faults)

    def _synthesize(self, body: bytes) -> Answer:
        try:
            request = SynthesizeRequest.model_validate_json(body)
        except ValidationError as error:
            raise Refused(refusal_of(error)) from None
        wrong = request.recipe == "wrong"
        filled = request.model_copy(
            update={
                "prompts": request.prompts or _WRONG_PROMPTS,
                "guidance_scales": request.guidance_scales or (_WRONG_GUIDANCE if wrong else (7.5,)),
                "num_inference_steps": request.num_inference_steps or 20,
                "caption": "wrong" if wrong and request.caption is None else request.caption,
            }
        )
        asked = [
            (prompt, guidance_scale)
            for prompt in filled.prompts or ()
            for guidance_scale in filled.guidance_scales or ()
            for _ in range(filled.images_per_prompt)
        ]
        files = [
            (
                f"{place:04d}.png",
                preview(GenerateRequest(prompt=prompt, guidance_scale=scale), filled.seed * 1000 + place),
                prompt if filled.caption is None else filled.caption,
            )
            for place, (prompt, scale) in enumerate(asked)
        ]
        return self._made(files, request.name, [], filled)

    def _made(
        self,
        files: Sequence[tuple[str, bytes, str]],
        name: str,
        faults: list[DatasetFault],
        synthesis: SynthesizeRequest | None = None,
    ) -> Answer:
        if not files:
            raise _refused(422, "empty_dataset", "the dataset has no picture that could be used")
        pictures = [
            DatasetPicture(file=file, digest=_digest(data), width=_EDGE, height=_EDGE, caption=caption)
            for file, data, caption in files
        ]
        id = _digest("".join(picture.model_dump_json() for picture in pictures).encode())
        self._files |= {_digest(data): data for _, data, _ in files}
        existing = id in self._kept
        if not existing:
            self._kept[id] = Dataset(
                id=id,
                name=name,
                pictures=pictures,
                size_bytes=sum(len(data) for _, data, _ in files),
                faults=faults,
                synthesis=synthesis,
                created_at=_WHEN,
            )
        made = self._kept[id].model_copy(update={"existing": existing, "faults": faults})
        return _answer(made, 200 if existing else 201)


def _told(made: Answer) -> Answer:
    """The same answer as a stream of events: none made, all made, the dataset."""
    dataset = Dataset.model_validate_json(made.body)
    total = len(dataset.pictures)
    progress = [SynthesisProgress(done=done, total=total) for done in (0, total)]
    events = [("progress", told) for told in progress if not dataset.existing] + [("result", dataset)]
    body = frames((name, data.model_dump_json()) for name, data in events)
    return Answer(200, body, {"Content-Type": "text/event-stream; charset=utf-8"})


def _summary(dataset: Dataset) -> DatasetSummary:
    return DatasetSummary(
        id=dataset.id,
        name=dataset.name,
        picture_count=len(dataset.pictures),
        size_bytes=dataset.size_bytes,
        created_at=dataset.created_at,
    )


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).casefold()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _answer(body: BaseModel, status: int = 200) -> Answer:
    return Answer(status, body.model_dump_json().encode(), {"Content-Type": "application/json"})


def _refused(status: int, code: str, detail: str, *errors: FieldError) -> Refused:
    title = code.replace("_", " ").capitalize()
    return Refused(Problem(title=title, status=status, detail=detail, code=code, errors=list(errors)))
