"""The backends' breakers as this worker knows them: views at most a second old, and what it has to report.

A call to a backend whose view is closed costs no trip. Reports go out in the background and are tried until the store
takes them, so that they delay no job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from common.breaker import BreakerStore, BreakerView, Phase, Verdict
from common.clock import Clock
from common.errors import (
    AnswerTooLong,
    HeadraceError,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRefused,
)

log = structlog.get_logger(__name__)

MOST_REPORTS: Final = 1_000
RETRY_STORE_S: Final = 0.2
PROBED_MS: Final = 1_000
"""How long work rests that came while another call probes the backend: by then its answer is mostly known."""
_CLOSED: Final = BreakerView(Phase.CLOSED, 0, 0)


@dataclass(frozen=True, slots=True)
class _Report:
    """How a call ended, for the breaker; `worker` and `probe` say on whose permission it was made.

    `failed` is None where it was not made at all.
    """

    backend: str
    worker: str
    failed: bool | None
    probe: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """A view and when it was seen."""

    view: BreakerView
    at_s: float


class Breakers:
    """One worker's side of the fleet's breakers."""

    def __init__(
        self,
        store: BreakerStore,
        clock: Clock,
        backends: Sequence[str],
        *,
        worker_id: Callable[[], str],
        changed: Callable[[str, Phase], None] = lambda _name, _phase: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._names = tuple(backends)
        self._worker_id = worker_id
        self._changed = changed
        self._seen: dict[str, _Seen] = {}
        self._reports: deque[_Report] = deque(maxlen=MOST_REPORTS)
        self._some = asyncio.Event()
        self._none_left = asyncio.Event()
        self._none_left.set()

    # --- what is known ------------------------------------------------------------------------------------------------

    def view(self, backend: str) -> BreakerView:
        """The backend's breaker when it was last seen."""
        seen = self._seen.get(backend)
        return _CLOSED if seen is None else seen.view

    def retry_ms(self, backend: str) -> int:
        """How long the breaker refuses every call yet; 0 where it is closed or a probe may be due."""
        seen = self._seen.get(backend)
        if seen is None or seen.view.phase is Phase.CLOSED:
            return 0
        return max(0, seen.view.retry_ms - int((self._clock.monotonic_s() - seen.at_s) * 1000))

    def rest_ms(self, backend: str) -> int:
        """How long work should rest that was refused: the cool-off, or about as long as a probe takes."""
        left_ms = self.retry_ms(backend)
        return left_ms if left_ms and self.view(backend).phase is Phase.OPEN else PROBED_MS

    async def refresh(self) -> None:
        """Reads all views. Raises StoreUnavailable; the last ones stay then."""
        for name, view in (await self._store.read(self._names)).items():
            self._note(name, view)

    def _note(self, backend: str, view: BreakerView) -> None:
        before = self.view(backend).phase
        self._seen[backend] = _Seen(view, self._clock.monotonic_s())
        if view.phase is not before:
            log.info("breaker.turned", backend=backend, phase=view.phase.value, was=before.value)
            self._changed(backend, view.phase)

    # --- asking and telling -------------------------------------------------------------------------------------------

    async def ask(self, backend: str) -> Verdict:
        """Whether a call may be made; no trip where the breaker was closed. Raises StoreUnavailable."""
        if self.view(backend).phase is Phase.CLOSED:
            return Verdict.PASS
        return await self._store.ask(backend, self._worker_id())

    def succeeded(self, backend: str, *, probe: bool) -> None:
        """Takes note of an answer; it is told where that could change anything."""
        if probe or self.view(backend).failures > 0:
            self._tell(_Report(backend, self._worker_id(), failed=False, probe=probe))

    def failed(self, backend: str, *, probe: bool) -> None:
        """Takes note of a failure of the backend's own."""
        self._tell(_Report(backend, self._worker_id(), failed=True, probe=probe))

    def released(self, backend: str) -> None:
        """Takes note that a probe was permitted and no call made: it goes back, for anyone to make."""
        self._tell(_Report(backend, self._worker_id(), failed=None, probe=True))

    def _tell(self, report: _Report) -> None:
        # While the store is away the newest thousand are kept: they say how the backend is now.
        self._reports.append(report)
        self._none_left.clear()
        self._some.set()

    async def report(self) -> None:
        """Sends reports for as long as it runs."""
        while True:
            await self._some.wait()
            while self._reports:
                await self._send(self._reports[0])
            self._some.clear()
            self._none_left.set()

    async def _send(self, report: _Report) -> None:
        try:
            view = await self._sent(report)
        except HeadraceError as error:
            log.warning("breaker.store_trouble", error=error.failure.message)
            await self._clock.sleep(RETRY_STORE_S)
            return
        # Where the queue was full, the one that was sent may have been dropped from it meanwhile.
        if self._reports and self._reports[0] is report:
            self._reports.popleft()
        self._note(report.backend, view)

    async def _sent(self, report: _Report) -> BreakerView:
        if report.failed is None:
            return await self._store.released(report.backend, report.worker)
        send = self._store.failed if report.failed else self._store.succeeded
        return await send(report.backend, report.worker, probe=report.probe)

    async def told(self) -> None:
        """Returns once every report has been taken."""
        await self._none_left.wait()


def blames_backend(error: UpstreamError) -> bool:
    """Whether an error is the backend's failure: no refusal of this request, of the pace or of a key, nor our limit."""
    return not isinstance(error, UpstreamBusy | UpstreamRefused | UpstreamCredentials | AnswerTooLong)
