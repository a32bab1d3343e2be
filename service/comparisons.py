"""The use case of comparisons: planned and refused before they exist, told of while they are drawn."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from darkroom.types import (
    CompareEvent,
    CompareFile,
    CompareMetric,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    LoraUse,
    RunState,
)
from lora_registry import LoraVersion
from service.adapters import Adapters
from service.blocking import ToSend
from service.compare.changes import ENDED
from service.compare.expansion import Expanded, ExpandedArm, expanded
from service.compare.pinning import pinned
from service.compare.planning import Versions, cells_of, plan_of, pointer_of, prepared
from service.compare.table import ComparisonTable, Draft
from service.engine.engine import Engine
from service.errors import CompareTooLarge, InvalidOption, UnknownLora
from service.following import EVENTS_AT_ONCE, POLL_SECONDS, Followed
from service.measurements.metrics import METRICS, OF_PIXELS, described
from service.metrics import Metrics

COUNTED_OUT: Final = 3
"""How many times the cells that may be drawn a plan may have."""


@dataclass(frozen=True)
class Bounds:
    """What one comparison may ask for."""

    max_cells: int
    max_seconds: float


class Comparisons(Followed[ComparisonTable, CompareEvent, Comparison]):
    """Comparisons for an event loop. What connecting to the table raises, every method may raise but `plan`."""

    def __init__(
        self,
        connect: Callable[[], ComparisonTable],
        *,
        engine: Callable[[], Engine],
        adapters: Adapters,
        scored: Callable[[], Sequence[CompareMetric]],
        bounds: Bounds,
        wake: Callable[[], None],
        stop: Callable[[str], None],
        metrics: Metrics,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`engine` raises ModelLoading until there is one. `scored` are the metrics of the scorers that this service
        has; `wake` tells who draws that there is something to do, `stop` that a comparison's end was asked for.
        """
        super().__init__(connect, name="comparisons", poll_seconds=poll_seconds)
        self._engine, self._adapters, self._scored, self._bounds = engine, adapters, scored, bounds
        self._wake, self._stop, self._observed = wake, stop, metrics
        self._planning = threading.Lock()

    def table(self) -> ComparisonTable:
        """The connected table, for those who are in a thread of their own. Blocks."""
        return self._connected()

    async def plan(self, request: CompareRequest) -> ComparePlan:
        """What the comparison would come to; nothing is begun.

        Raises:
            InvalidOption, InvalidPrompt, UnknownLora: it cannot be drawn as it is.
            ModelLoading, EngineStopped
        """
        return (await self._draft(request)).plan

    async def create(self, request: CompareRequest, *, key: str = "") -> tuple[Comparison, bool]:
        """The comparison that this request is from now on, and whether it was there already, under the same key.

        Raises:
            CompareTooLarge: it asks for more than one comparison may.
            KeyReused, Draining; and as `plan`.
        """
        self._refuse_while_draining()
        fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        if key:
            # Before anything is looked at that may have changed since: a LoRA, the model.
            made = await self._asked(lambda table: table.made_with(key, fingerprint))
            if made is not None:
                return made, True
        draft = await self._draft(request)
        if not draft.plan.fits:
            raise CompareTooLarge(_too_large(draft.plan, self._bounds))
        comparison, replayed = await self._asked(
            lambda table: table.create(draft, key=key, fingerprint=fingerprint)
        )
        if not replayed:
            self._observed.comparisons_total.labels("queued").inc()
            self._wake()
        return comparison, replayed

    async def get(self, id: str) -> Comparison:
        """A comparison as it stands, with its cells. Raises ComparisonNotFound."""
        return await self._asked(lambda table: table.get(id))

    async def list(
        self, *, state: RunState | None = None, limit: int = 50, cursor: str = ""
    ) -> ComparisonPage:
        """Comparisons, the newest first. Raises InvalidCursor."""
        return await self._asked(lambda table: table.list(state=state, limit=limit, cursor=cursor))

    async def cancel(self, id: str) -> Comparison:
        """A comparison that is to end; what is drawn of it stays. Raises ComparisonNotFound."""

        def cancelled(table: ComparisonTable) -> Comparison:
            waits = table.state(id) == "queued"
            comparison = table.cancel(id)
            if waits and comparison.state == "cancelled":
                self._observed.comparisons_total.labels("cancelled").inc()
            return comparison

        comparison = await self._asked(cancelled)
        self._stop(id)
        return comparison

    async def image(self, id: str, cell: int) -> ToSend[CompareFile]:
        """The PNG of a cell that is done, to send. Raises ComparisonNotFound, CompareFileNotFound."""
        return await self._opened(lambda table: table.picture(id, cell))

    async def open(self, id: str, name: str) -> ToSend[CompareFile]:
        """A file of it, to send. Raises ComparisonNotFound, CompareFileNotFound."""
        return await self._opened(lambda table: table.open(id, name))

    def _has_ended(self, store: ComparisonTable, id: str) -> bool:
        return store.state(id) in ENDED

    def _events_after(self, store: ComparisonTable, id: str, after: int) -> Sequence[CompareEvent]:
        return store.events(id, after=after, limit=EVENTS_AT_ONCE)

    def _whole(self, store: ComparisonTable, id: str) -> Comparison:
        return store.get(id)

    async def _draft(self, request: CompareRequest) -> Draft:
        """The request with everything settled that could change until it is drawn."""
        engine = self._engine()
        wanted = expanded(request)
        versions = await self._resolved(wanted)
        if request.lora is not None:
            wanted = _fitting(wanted, versions[request.lora.ref])

        def planned() -> Draft:
            with self._planning:  # one at a time: it is a core's work, and pictures need the core
                return self._planned(request, wanted, versions, engine)

        return await self._in_thread(planned)

    def _planned(
        self,
        request: CompareRequest,
        wanted: Expanded,
        versions: Versions,
        engine: Engine,
    ) -> Draft:
        """In a thread: thousands of cells take a while."""
        metrics = self._metrics(request)
        count = len(wanted.arms) * len(wanted.prompts) * len(wanted.seeds)
        # A plan of somewhat too many is told what it would cost; millions of cells are not even counted out.
        if count > self._bounds.max_cells * (COUNTED_OUT if request.dry_run else 1):
            raise CompareTooLarge(
                f"the comparison has {count} cells ({len(wanted.arms)} arms, {len(wanted.prompts)} prompts, "
                f"{len(wanted.seeds)} seeds) and {self._bounds.max_cells} are allowed; name fewer"
            )
        cells = cells_of(wanted, versions, engine.models)
        # Cells say `name@3` from now on, whatever the request said.
        known = {**versions, **{version.ref: version for version in versions.values()}}
        plan = plan_of(
            request,
            wanted,
            known,
            prepared(cells, known, engine.models),
            engine.costs,
            metrics,
            model=engine.models.name,
            max_cells=self._bounds.max_cells,
            max_seconds=self._bounds.max_seconds,
        )
        return Draft(
            request=request,
            plan=plan,
            cells=tuple(cells),
            metrics=tuple(described(metrics, request.metric, request.better)),
            model=engine.models.fingerprint,
            pinned=pinned(known),
        )

    def _metrics(self, request: CompareRequest) -> Sequence[CompareMetric]:
        """What will be measured, in the order of the table of metrics.

        Raises:
            InvalidOption: not the one that is to decide.
        """
        measured = {*OF_PIXELS, *self._scored(), *(["prompt_adherence"] if request.adherence else [])}
        if request.metric is not None and request.metric not in measured:
            hints = {
                "prompt_adherence": "set `adherence` to true",
                "clip_score": "the service's setting DARKROOM_CLIP names a model for it",
            }
            hint = hints.get(request.metric, "it is for the pocket model's own prompts")
            raise InvalidOption(f"'{request.metric}' is not measured here: {hint}", pointer="/metric")
        return [metric for metric in METRICS if metric in measured]

    async def _resolved(self, wanted: Expanded) -> Versions:
        """What every ref of every arm means now.

        Raises:
            UnknownLora: it points at the part of the request that names it.
        """
        refs: dict[str, tuple[ExpandedArm, int]] = {}
        for arm in wanted.arms:
            for place, use in enumerate(arm.settings.loras):
                refs.setdefault(use.ref, (arm, place))
        versions = {}
        for ref, (arm, place) in refs.items():
            try:
                (versions[ref],) = await self._adapters.resolve([LoraUse(ref=ref)])
            except UnknownLora as exc:
                raise UnknownLora(exc.message, pointer=pointer_of(arm, f"loras/{place}/ref")) from exc
        return versions


def _fitting(wanted: Expanded, version: LoraVersion) -> Expanded:
    """The arms of a preset that this LoRA can have.

    Raises:
        InvalidOption: it can have none.
    """
    if version.kind == "embedding":
        token = (version.tokens or (version.name,))[0]
        raise InvalidOption(
            f"'{version.ref}' is an embedding, which presets are not about; name `arms`, and let a prompt or negative "
            f"prompt say '{token}'",
            pointer="/lora",
        )
    return wanted.without_shams() if "dora" in version.algorithms else wanted


def _too_large(plan: ComparePlan, bounds: Bounds) -> str:
    return (
        f"the comparison has {plan.cells} cells, {plan.evaluations.planned + plan.evaluations.measuring} UNet "
        f"evaluations and about {plan.estimated_seconds:.0f} s of the device; {bounds.max_cells} cells and "
        f"{bounds.max_seconds:.0f} s are allowed. Name fewer arms, prompts or seeds, or take fewer steps"
    )
