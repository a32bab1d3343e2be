"""Table rows to the records of the wire contract, and back.

Records are kept with the fields that were set and no others: of a request and of its arms, only those count.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Connection, Row, select

from darkroom.types import (
    CompareCell,
    CompareEvent,
    CompareFile,
    ComparePlan,
    CompareRequest,
    CompareVerdict,
    Comparison,
    MetricInfo,
    Problem,
)
from lora_registry.database import Database
from lora_registry.rows import moment
from service.compare.errors import ComparisonNotFound
from service.store.schema import cells, comparison_files, comparisons


def written(record: BaseModel) -> str:
    """A record as JSON."""
    return record.model_dump_json(exclude_unset=True)


def written_all(records: Iterable[BaseModel]) -> str:
    """Records as a JSON list."""
    return f"[{','.join(map(written, records))}]"


def written_cell(cell: CompareCell) -> str:
    """What a cell is besides its columns."""
    return cell.model_dump_json(
        exclude={"index", "state", "image", "measurements", "problem"}, exclude_unset=True
    )


def measured(measurements: Mapping[str, float]) -> str:
    """Measurements as JSON, which has no word for what is not finite: that could not be measured."""
    return json.dumps({name: value for name, value in measurements.items() if math.isfinite(value)})


def get_comparison(database: Database, comparison_id: str) -> Comparison:
    """The comparison as it stands, with all that it has. Raises ComparisonNotFound."""
    with database.read() as connection:
        row = connection.execute(select(comparisons).where(comparisons.c.id == comparison_id)).one_or_none()
        if row is None:
            raise ComparisonNotFound(comparison_id)
        return whole_comparison(connection, row)


def whole_comparison(connection: Connection, row: Row[Any]) -> Comparison:
    """The comparison of a row, with its cells, verdicts and files."""
    its_cells = select(cells).where(cells.c.comparison_id == row.id).order_by(cells.c.place)
    its_files = (
        select(comparison_files)
        .where(comparison_files.c.comparison_id == row.id)
        .order_by(comparison_files.c.name)
    )
    return comparison_from(row).model_copy(
        update={
            "cells": [_cell_from(cell) for cell in connection.execute(its_cells)],
            "verdicts": [CompareVerdict.model_validate(verdict) for verdict in _loaded(row.verdicts, [])],
            "files": [file_from(file) for file in connection.execute(its_files)],
        }
    )


def comparison_from(row: Row[Any]) -> Comparison:
    """The comparison of a row as it is listed: without cells, verdicts and files."""
    request = CompareRequest.model_validate_json(row.request)
    return Comparison(
        id=row.id,
        state=row.state,
        stage=row.stage,
        name=request.name,
        request=request,
        plan=ComparePlan.model_validate_json(row.plan),
        done=row.done,
        metrics=[MetricInfo.model_validate(metric) for metric in json.loads(row.metrics)],
        conclusion=_loaded(row.conclusion, ""),
        warnings=_loaded(row.warnings, []),
        problem=None if row.problem is None else Problem.model_validate_json(row.problem),
        cancel_requested=row.cancel_requested,
        attempts=row.attempts,
        model=row.model,
        created_at=moment(row.created_ms),
        started_at=None if row.started_ms is None else moment(row.started_ms),
        finished_at=None if row.finished_ms is None else moment(row.finished_ms),
    )


def at_place(comparison_id: str, place: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """What a cell's row is found by."""
    return cells.c.comparison_id == comparison_id, cells.c.place == place


def named(comparison_id: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """What a file's row is found by."""
    return comparison_files.c.comparison_id == comparison_id, comparison_files.c.name == name


def event_from(row: Row[Any]) -> CompareEvent:
    return CompareEvent(id=row.id, type=row.type, at=moment(row.at_ms), **json.loads(row.data))


def file_from(row: Row[Any]) -> CompareFile:
    return CompareFile(
        name=row.name, media_type=row.media_type, size_bytes=row.size_bytes, digest=f"sha256:{row.digest}"
    )


def _cell_from(row: Row[Any]) -> CompareCell:
    is_done = row.state == "done"
    return CompareCell.model_validate(
        {
            **json.loads(row.data),
            "index": row.place,
            "state": row.state,
            "image": f"/v1/runs/{row.comparison_id}/images/{row.place}" if is_done else None,
            "measurements": json.loads(row.measurements),
        }
    )


def _loaded(text: str | None, default: Any) -> Any:
    return default if text is None else json.loads(text)
