"""Errors as answers: one table from the class of an error to its status, and the RFC 9457 body."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import pydantic
import structlog
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from darkroom.types import DatasetFault, FieldError, Problem
from darkroom.types.faults import MAX_FIELD_ERRORS, MAX_TEXT_CHARACTERS, bounded, invalid_request
from lora_registry import Reason
from lora_registry import errors as lora_errors
from service import errors
from service.api import exchange, refusals
from service.compare import errors as compare_errors
from service.datasets import errors as dataset_errors
from service.jobs import errors as job_errors
from service.store import errors as store_errors
from service.training import errors as training_errors

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger()


@dataclass(frozen=True)
class Row:
    """How one class of error is answered. `retry_after_seconds` is the default where the error names none."""

    status: int
    code: str
    title: str
    retry_after_seconds: float | None = None


NO_ROOM: Final = {507: "The database has no room."}
"""What every route that writes to a database may answer, for its description."""
TABLE: dict[type[Exception], Row] = {
    refusals.Unauthenticated: Row(401, "unauthenticated", "An API key is needed"),
    refusals.Forbidden: Row(403, "forbidden", "The API key may not do this"),
    refusals.NotAcceptable: Row(406, "not_acceptable", "No acceptable representation"),
    refusals.BodyTooSlow: Row(408, "body_too_slow", "The body took too long"),
    refusals.UploadTooSlow: Row(408, "upload_too_slow", "The upload hardly gets on"),
    refusals.BodyTooLarge: Row(413, "body_too_large", "The body is too large"),
    refusals.UnsupportedMediaType: Row(415, "unsupported_media_type", "The body is of another type"),
    refusals.InvalidCondition: Row(400, "invalid_condition", "The condition cannot be decided"),
    refusals.Disconnected: Row(499, "disconnected", "The caller went away"),
    refusals.ShutDown: Row(503, "shutdown", "The service shut down", 5),
    errors.InvalidPrompt: Row(422, "invalid_prompt", "The prompt cannot be read"),
    errors.InvalidOption: Row(422, "invalid_option", "The request is not possible on this service"),
    errors.TooExpensive: Row(422, "too_expensive", "The request is too expensive"),
    errors.UnusableImage: Row(422, "unusable_image", "The model made an unusable image"),
    errors.OutOfDeviceMemory: Row(413, "out_of_device_memory", "The image does not fit the device"),
    errors.ModelLoading: Row(503, "model_loading", "The model is loading", 5),
    errors.Draining: Row(503, "draining", "The service is shutting down", 5),
    errors.DeviceLent: Row(503, "device_lent", "A train job has the device", 30),
    errors.Overloaded: Row(503, "overloaded", "The queue is full", 10),
    errors.EngineStopped: Row(503, "engine_stopped", "The engine has stopped", 30),
    errors.TooManyUploads: Row(503, "too_many_uploads", "Too many uploads at once", 10),
    errors.TooManyReaders: Row(503, "too_many_readers", "Too many streams of events at once", 10),
    errors.WeightsDamaged: Row(503, "weights_damaged", "The weights in memory are damaged", 30),
    errors.SwapFailed: Row(503, "swap_failed", "The LoRAs could not be put in force", 5),
    errors.UnknownLora: Row(422, "unknown_lora", "The request names a LoRA that is not there"),
    errors.IncompatibleLora: Row(422, "incompatible_lora", "The LoRA is not for this model"),
    errors.InvalidBlend: Row(422, "invalid_blend", "The LoRAs cannot be blended so"),
    errors.Cancelled: Row(503, "cancelled", "The work was cancelled", 5),
    errors.DeadlineExceeded: Row(504, "deadline_exceeded", "The deadline passed"),
    dataset_errors.InvalidArchive: Row(422, "invalid_archive", "The upload cannot be taken apart"),
    dataset_errors.InvalidDataset: Row(422, "invalid_dataset", "Pictures or captions cannot be used"),
    dataset_errors.EmptyDataset: Row(422, "empty_dataset", "The dataset has no picture"),
    dataset_errors.DatasetTooLarge: Row(413, "dataset_too_large", "The dataset is too large"),
    dataset_errors.DatasetNotFound: Row(404, "dataset_not_found", "The dataset was not found"),
    dataset_errors.PictureNotFound: Row(404, "picture_not_found", "The picture was not found"),
    lora_errors.InvalidName: Row(422, "invalid_name", "The name cannot be used"),
    lora_errors.InvalidRef: Row(422, "invalid_ref", "The reference cannot be read"),
    lora_errors.InvalidLabel: Row(422, "invalid_label", "The words cannot be used"),
    lora_errors.InvalidCursor: Row(422, "invalid_cursor", "The cursor cannot be read"),
    lora_errors.InvalidLora: Row(422, "invalid_lora", "The file is no LoRA for this service"),
    lora_errors.DigestMismatch: Row(422, "digest_mismatch", "Other bytes arrived than were announced"),
    lora_errors.NotExportable: Row(422, "not_exportable", "The LoRA has no equal in this form"),
    lora_errors.LoraTooLarge: Row(413, "lora_too_large", "The file is too large"),
    lora_errors.LoraNotFound: Row(404, "lora_not_found", "The LoRA was not found"),
    lora_errors.VersionExists: Row(409, "version_exists", "The version is there already"),
    lora_errors.VersionInUse: Row(409, "version_in_use", "The version is in use"),
    lora_errors.AliasConflict: Row(412, "alias_conflict", "The alias is not as expected"),
    lora_errors.StorageFull: Row(507, "storage_full", "The storage is full"),
    lora_errors.StorageUnavailable: Row(503, "storage_unavailable", "The storage cannot be used", 10),
    lora_errors.BlobMissing: Row(503, "blob_missing", "The file is not in the storage", 30),
    lora_errors.CatalogFull: Row(507, "catalog_full", "The database has no room"),
    lora_errors.CatalogUnavailable: Row(503, "catalog_unavailable", "The registry's database is away", 10),
    job_errors.JobNotFound: Row(404, "job_not_found", "The train job was not found"),
    job_errors.ArtifactNotFound: Row(404, "artifact_not_found", "The file was not found"),
    job_errors.JobNotRetryable: Row(409, "job_not_retryable", "The train job cannot be retried"),
    store_errors.KeyReused: Row(422, "idempotency_key_reused", "The Idempotency-Key came with another body"),
    errors.CompareTooLarge: Row(422, "compare_too_large", "The comparison is too large"),
    compare_errors.ComparisonNotFound: Row(404, "comparison_not_found", "The comparison was not found"),
    compare_errors.CompareFileNotFound: Row(404, "compare_file_not_found", "The file was not found"),
    training_errors.TrainingTooLarge: Row(422, "training_too_large", "The training does not fit the device"),
    training_errors.TrainingDiverged: Row(422, "training_diverged", "The training diverged"),
    training_errors.NothingToLearn: Row(422, "nothing_to_learn", "There is nothing to learn from"),
}
MALFORMED_JSON = Row(400, "malformed_json", "The body is not JSON")
INVALID_REQUEST = Row(422, "invalid_request", "The request is invalid")
INTERNAL = Row(500, "internal", "Internal error")
ANSWERED = {
    400: Row(400, "malformed_json", "The body is not JSON"),
    404: Row(404, "not_found", "Nothing is here"),
    405: Row(405, "method_not_allowed", "The method is not allowed"),
    429: Row(429, "too_many_requests", "Too many requests", 5),
    500: INTERNAL,
    503: Row(503, "unavailable", "The service is unavailable", 5),
    504: Row(504, "timed_out", "The service took too long"),
}
HEADERS_KEPT = ("allow", "retry-after", "www-authenticate")

_HIDDEN = "the service failed; its log has the cause under this request_id"


@dataclass(frozen=True)
class Fault:
    """An error, ready to be written down."""

    row: Row
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def respond(error: BaseException, scope: exchange.Scope) -> Response:
    """The answer to an error, with the ids of its request. One that the table lacks is logged and hidden."""
    fault = describe(error)
    body = _stated(error, fault, scope).model_dump_json(exclude_none=True)
    return Response(body, fault.row.status, headers=dict(fault.headers), media_type=MEDIA_TYPE)


def problem_of(error: BaseException, scope: exchange.Scope) -> Problem:
    """The same without an answer around it, for a stream that has begun."""
    return _stated(error, describe(error), scope)


def _stated(error: BaseException, fault: Fault, scope: exchange.Scope) -> Problem:
    if fault.row is INTERNAL and not isinstance(error, refusals.Answered):
        log.error("request_failed", exc_info=error)
    the_exchange = exchange.of(scope)
    the_exchange.code, the_exchange.problem_status = fault.row.code, fault.row.status
    return Problem(
        type=f"urn:darkroom:problem:{fault.row.code}",
        title=fault.row.title,
        status=fault.row.status,
        detail=fault.detail,
        code=fault.row.code,
        instance=quote(scope["path"])[:MAX_TEXT_CHARACTERS],
        request_id=the_exchange.request_id,
        errors=list(fault.errors),
    )


def describe(error: BaseException) -> Fault:
    """What to tell the caller of an error."""
    match error:
        case RequestValidationError():
            return _invalid(error.errors())
        case pydantic.ValidationError():
            return _invalid(error.errors(include_url=False, include_context=False, include_input=False))
        case errors.InvalidPrompt():
            found = FieldError(pointer=f"/{error.field}", message=error.message, position=error.position)
            return Fault(TABLE[errors.InvalidPrompt], error.message, (found,))
        case errors.InvalidOption():
            found = FieldError(pointer=error.pointer, message=error.message)
            return Fault(TABLE[type(error)], error.message, (found,))
        case errors.InvalidBlend():
            found = FieldError(pointer=f"/{error.field}", message=str(error))
            return Fault(TABLE[errors.InvalidBlend], str(error), (found,))
        case lora_errors.InvalidLora():
            reasons = tuple(_reason(reason) for reason in error.reasons[:MAX_FIELD_ERRORS])
            return Fault(TABLE[lora_errors.InvalidLora], bounded(str(error)), reasons)
        case dataset_errors.InvalidArchive():
            found = FieldError(pointer="", message=bounded(str(error)), code=error.code)
            return Fault(TABLE[dataset_errors.InvalidArchive], bounded(str(error)), (found,))
        case dataset_errors.InvalidDataset() | dataset_errors.EmptyDataset():
            faults = tuple(_dataset_fault(fault) for fault in error.faults[:MAX_FIELD_ERRORS])
            return Fault(TABLE[type(error)], bounded(str(error)), faults)
        case lora_errors.VersionExists():
            told = bounded(f"{error}; its digest is {error.digest}")
            return Fault(TABLE[lora_errors.VersionExists], told)
        case lora_errors.AliasConflict():
            headers = {"ETag": f'"{error.etag}"'} if error.etag else {}
            return Fault(TABLE[lora_errors.AliasConflict], bounded(str(error)), headers=headers)
        case refusals.Answered():
            return _answered(error)
        case errors.EngineStopped():  # its reason may name files
            return _told(TABLE[errors.EngineStopped], "no picture can be made; the service's log says why")
    row = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if row is None:
        return Fault(INTERNAL, _HIDDEN)
    return _told(row, bounded(str(error)), getattr(error, "retry_after_seconds", None))


def _reason(reason: Reason) -> FieldError:
    return FieldError(pointer="", message=bounded(reason.message), code=reason.code)


def _dataset_fault(fault: DatasetFault) -> FieldError:
    return FieldError(pointer="", message=bounded(f"{fault.file!r} {fault.message}"), code=fault.code)


def _told(row: Row, detail: str, retry_after_seconds: float | None = None) -> Fault:
    headers = _retry_after(row.retry_after_seconds if retry_after_seconds is None else retry_after_seconds)
    if row.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="darkroom"'
    return Fault(row, detail, headers=headers)


def _answered(error: refusals.Answered) -> Fault:
    row = ANSWERED.get(error.status) or Row(error.status, f"http_{error.status}", str(error))
    kept = {name: value for name, value in error.headers.items() if name in HEADERS_KEPT}
    if "retry-after" not in kept:
        kept |= _retry_after(row.retry_after_seconds)
    return Fault(row, _details(error, kept), headers=kept)


def _details(error: refusals.Answered, headers: Mapping[str, str]) -> str:
    match error.status:
        case 400:
            return "the body cannot be read as JSON"
        case 404:
            return "nothing is served at this path; /v1/openapi.json lists what is"
        case 405:
            return f"this path takes {headers.get('allow', 'other methods')}"
        case 500:
            return _HIDDEN
    return str(error)


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def _invalid(found: Iterable[Mapping[str, Any]]) -> Fault:
    """Faults of a body; FastAPI says of each that it is in the body."""
    found = [{**one, "loc": one["loc"][1:] if one["loc"][:1] == ("body",) else one["loc"]} for one in found]
    if found[0]["type"] == "json_invalid":
        return Fault(MALFORMED_JSON, "the body cannot be read as JSON")
    problem = invalid_request(found)
    return Fault(INVALID_REQUEST, problem.detail, tuple(problem.errors))
