"""What a comparison comes to before anything is drawn: orders, the steps that they share, what it will cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from darkroom.types import (
    CompareCell,
    CompareEvaluations,
    CompareMetric,
    ComparePlan,
    CompareRequest,
    GenerateRequest,
    PlannedArm,
)
from lora_registry import LoraVersion
from service.compare.expansion import Expanded, ExpandedArm, request_of
from service.compare.forest import Segment, forest, in_order, swaps
from service.engine import adherence
from service.engine.costs import Costs
from service.engine.models import Models
from service.engine.orders import Order
from service.engine.paths import Way, Ways
from service.engine.prompts import ParsedPrompt, parse
from service.errors import InvalidOption, InvalidPrompt
from service.translation import order_from

Versions = Mapping[str, LoraVersion]
"""What a comparison's refs meant when it was made, by what they were written as and by `name@3`."""


@dataclass(frozen=True)
class Prepared:
    """Every cell as an order, and as a way. Equal for equal cells, versions and models."""

    orders: tuple[Order, ...]
    ways: tuple[Way, ...]

    def forest(self, cells: Sequence[int] | None = None) -> list[Segment]:
        """What is to be drawn for these cells, or for all."""
        return forest(self.ways, cells)


def cells_of(expanded: Expanded, versions: Versions, models: Models) -> list[CompareCell]:
    """All cells, none of them drawn; every ref of a LoRA is what it means now, `name@3`.

    Raises:
        InvalidPrompt, InvalidOption: an arm cannot be drawn as it is; it points into the comparison's request.
    """
    _check_prompts(expanded.prompts)
    cells = []
    checked: set[tuple[str, str]] = set()
    for index, (arm, prompt, seed) in enumerate(expanded.cells()):
        request = request_of(arm, prompt, seed)
        if (arm.name, prompt) not in checked:
            _check(arm, request, expanded.prompts.index(prompt), versions, models)
            checked.add((arm.name, prompt))
        uses = tuple(use.model_copy(update={"ref": versions[use.ref].ref}) for use in request.loras)
        if uses:
            request = request.model_copy(update={"loras": uses})
        cells.append(CompareCell(index=index, arm=arm.name, prompt=prompt, seed=seed, request=request))
    return cells


def prepared(cells: Sequence[CompareCell], versions: Versions, models: Models) -> Prepared:
    """The orders of cells that `cells_of` gave, now or before a restart."""
    ways = Ways(models)
    known: dict[tuple[str, str], tuple[Order, Way]] = {}
    for cell in cells:
        # Cells of one arm and prompt differ in their seeds alone: thousands of prompts need not be parsed.
        if (cell.arm, cell.prompt) not in known:
            order = _order(cell.request, versions, models)
            known[cell.arm, cell.prompt] = order, ways.of(order)
    found = [(*known[cell.arm, cell.prompt], cell.seed) for cell in cells]
    return Prepared(
        tuple(replace(order, seeds=(seed,)) for order, _, seed in found),
        tuple(way.with_seed(seed) for _, way, seed in found),
    )


def plan_of(
    request: CompareRequest,
    expanded: Expanded,
    versions: Versions,
    ready: Prepared,
    costs: Costs,
    metrics: Sequence[CompareMetric],
    *,
    model: str,
    max_cells: int,
    max_seconds: float,
) -> ComparePlan:
    """The plan, as it is shown."""
    roots = ready.forest()
    segments = [segment for batch in in_order(roots) for segment in batch]
    pictures = sum(bool(segment.finished) for segment in segments)
    prompts = [prompt for _, prompt, _ in expanded.cells()]

    def judgements(segment: Segment) -> int:
        return len({prompts[cell] for cell in segment.finished}) if request.adherence else 0

    seconds = sum(_seconds(segment, ready, costs, judgements(segment)) for segment in segments)
    return ComparePlan(
        model=model,
        arms=[_planned(arm, versions) for arm in expanded.arms],
        baseline=expanded.baseline,
        prompts=list(expanded.prompts),
        seeds=list(expanded.seeds),
        cells=len(ready.orders),
        pictures=pictures,
        evaluations=CompareEvaluations(
            planned=sum(segment.evaluations for segment in segments),
            naive=sum(way.steps * way.rows for way in ready.ways),
            measuring=sum(map(judgements, segments)) * adherence.STEPS * 2,
        ),
        swaps=swaps(roots, judged=request.adherence),
        estimated_seconds=seconds,
        metrics=list(metrics),
        fits=len(ready.orders) <= max_cells and seconds <= max_seconds,
    )


def _planned(arm: ExpandedArm, versions: Versions) -> PlannedArm:
    uses = tuple(use.model_copy(update={"ref": versions[use.ref].ref}) for use in arm.settings.loras)
    settings = arm.settings.model_copy(update={"loras": uses}) if uses else arm.settings
    return PlannedArm(name=arm.name, settings=settings, prompt=arm.prompt)


def _order(request: GenerateRequest, versions: Versions, models: Models) -> Order:
    loras = [versions[use.ref] for use in request.loras]
    return order_from(request, models, first_seed=request.seed or 0, loras=loras)


def _seconds(segment: Segment, ready: Prepared, costs: Costs, judgements: int) -> float:
    order, way = ready.orders[segment.cells[0]], ready.ways[segment.cells[0]]
    base_steps = max(0, min(segment.end, way.base_steps) - segment.start)
    refiner_steps = segment.end - segment.start - base_steps
    return costs.of(
        order.pixels,
        base_rows=base_steps * way.rows,
        refiner_rows=refiner_steps * way.rows,
        pictures=int(bool(segment.finished)),
        judgements=judgements,
    )


def _check_prompts(prompts: Sequence[str]) -> None:
    """Have every prompt read, also those that arms say in other words: pictures are scored by them.

    Raises:
        InvalidPrompt: one cannot be read.
        InvalidOption: two mean the same, so that each pair of pictures would count twice.
    """
    read: dict[ParsedPrompt, int] = {}
    for place, prompt in enumerate(prompts):
        parsed = parse(prompt, field=f"prompts/{place}")
        if (other := read.setdefault(parsed, place)) != place:
            raise InvalidOption(
                f"prompts {other + 1} and {place + 1} mean the same; each pair of pictures would count twice",
                pointer=f"/prompts/{place}",
            )


def _check(
    arm: ExpandedArm, request: GenerateRequest, prompt: int, versions: Versions, models: Models
) -> None:
    """Have one cell of an arm translated, so that what is wrong with it is told before there is a comparison.

    Raises:
        InvalidPrompt, InvalidOption: it points at the part of the comparison's request that says it.
    """
    try:
        _order(request, versions, models)
    except InvalidPrompt as exc:
        if exc.field == "prompt":
            field = f"prompts/{prompt}" if arm.prompt is None else f"{arm.pointer}/prompt"
        else:
            field = pointer_of(arm, exc.field)
        raise InvalidPrompt(
            f"arm '{arm.name}': {exc.message}", position=exc.position, field=field.removeprefix("/")
        ) from exc
    except InvalidOption as exc:
        pointer = pointer_of(arm, exc.pointer.removeprefix("/"))
        raise InvalidOption(f"arm '{arm.name}': {exc.message}", pointer=pointer) from exc


def pointer_of(arm: ExpandedArm, field: str) -> str:
    """Where the comparison's request says a field of an arm's settings: `loras/0/ref`."""
    for said, pointer in arm.said_at.items():
        if f"{field}/".startswith(f"{said}/") or said.startswith(f"{field}/"):
            # A value of an axis may be said in short.
            return pointer if arm.pointer == "/axes" else pointer + field[len(said) :]
    return f"/base/{field}"
