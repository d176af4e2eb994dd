"""An ask, answered by one of a model's targets: in order, with failover, hedge and retry budget.

What becomes of a job that none of them answered is decided here too; how one target is called, `caller.py` knows.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from common.catalogue import Target
from common.clock import Clock
from common.config import Settings
from common.contracts import Priority
from common.errors import (
    ContentFiltered,
    ContextTooLong,
    HeadraceError,
    ModelNotFound,
    UpstreamCredentials,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamRefused,
    UpstreamUnavailable,
    UpstreamUnsupported,
)
from common.metrics import WorkerMetrics
from common.needs import serves
from common.queue import Claim
from workers.breakers import PROBED_MS
from workers.budget import Budget
from workers.caller import Ask, Caller, ClosedOff, Work
from workers.fleet import Fleet
from workers.hedge import Race, never_raced
from workers.providers.base import Provider
from workers.routing import Missed, Prospects, by_room, in_order, instead, next_try, worth_trying
from workers.runs import GiveBack

log = structlog.get_logger(__name__)

RETRY_RESERVE: Final = 10
RETRY_REGAIN_S: Final = 10.0
WARM_KEYS: Final = 10_000
EMBEDDINGS: Final = "/v1/embeddings"
_PASSED_OVER: Final = (UpstreamModelMissing, UpstreamUnsupported)
"""What says only that this server is the wrong one: to ask another costs nothing."""

Result = TypeVar("Result")


class Unserved(Exception):
    """No target answered. `failure` says why, `backend` where, `missed` what may be done about it."""

    def __init__(self, error: HeadraceError, missed: Missed, backend: str = "") -> None:
        super().__init__(error.failure.code)
        self.failure = error.failure
        self.missed = missed
        self.backend = backend


class _Tries:
    """An ask, the targets that are left for it, and what its tries have come to so far.

    `ask` names the model whose targets these are: the one asked for, or its fallback.
    """

    __slots__ = (
        "ask",
        "backend",
        "before",
        "called",
        "error",
        "lacking",
        "may_move_on",
        "models",
        "passing",
        "refused",
        "rest",
        "soonest_ms",
    )

    def __init__(self, ask: Ask, rest: list[Target], may_move_on: Callable[[], bool]) -> None:
        self.ask = ask
        self.rest = rest
        self.may_move_on = may_move_on
        self.models = {ask.model}
        self.before: Unserved | None = None
        self.forget()

    def forget(self) -> None:
        """Begins to count anew: that a prompt is too long for one says nothing of whoever has more room."""
        self.backend = ""
        self.called = 0
        self.error: UpstreamError | None = None
        self.refused: UpstreamError | None = None
        self.lacking: tuple[UpstreamRefused, str] | None = None
        self.passing: tuple[UpstreamError, str] | None = None
        self.soonest_ms: int | None = None

    def closed(self, closed: ClosedOff) -> None:
        self.refused = closed.error
        self._keep_passing(closed.error, self.backend)
        self.soonest_ms = closed.wait_ms if self.soonest_ms is None else min(self.soonest_ms, closed.wait_ms)

    def failed(self, error: UpstreamError, backend: str) -> None:
        if isinstance(error, _PASSED_OVER):
            # It will be so the next time too, so going on must cost nothing, nor hide what may pass.
            self.lacking = error, backend
            return
        self.called += 1
        self.error = error
        self.backend = backend
        self._keep_passing(error, backend)

    def _keep_passing(self, error: UpstreamError, backend: str) -> None:
        """Remembers the last failure of a server that may answer later; a refused key's stays refused."""
        if error.retryable and not isinstance(error, UpstreamCredentials):
            self.passing = error, backend

    def turn_to(self, ask: Ask, targets: list[Target]) -> None:
        """Goes on with another model's targets. What kept the first model from answering stays known."""
        if isinstance(self.last_word, ContextTooLong):
            self.forget()
        elif self.before is None:
            self.before = self.unserved()
        self.ask = ask
        self.rest = targets
        self.models.add(ask.model)

    @property
    def last_word(self) -> UpstreamError:
        """Why nobody has answered yet."""
        return self.error or self.refused or (self.lacking[0] if self.lacking else UpstreamUnavailable())

    def unserved(self) -> Unserved:
        error, backend = self.last_word, self.backend
        # That a fallback refuses the request says nothing of the model that was asked for, which may answer later.
        if self.before is not None and isinstance(error, UpstreamRefused) and not isinstance(error, ContentFiltered):
            return self.before
        if self.lacking is not None and error is self.lacking[0]:
            return Unserved(error, Missed(called=True, may_recur=False), self.lacking[1])
        if isinstance(error, UpstreamCredentials):
            if self.passing is None:
                return Unserved(error, Missed(called=True, may_recur=False), backend)
            error, backend = self.passing
        wait_s = error.failure.retry_after_s
        missed = Missed(self.called > 0, error.retryable, wait_s, self.soonest_ms or PROBED_MS)
        return Unserved(error, missed, backend)


class Attempts:
    """What the calls of one worker share."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        providers: Mapping[str, Provider],
        clock: Clock,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._caller = Caller(fleet, providers, clock, metrics)
        self._metrics = metrics
        self._retries = Budget(settings.retry_budget, clock, reserve=RETRY_RESERVE, regain_s=RETRY_REGAIN_S)
        self._hedges = Budget(settings.hedge_budget, clock, reserve=1)
        self._jitter = random.Random()  # noqa: S311 - neither back-off nor a turn is a secret
        # Workers that start together don't all begin with the same backend.
        self._turn = self._jitter.randrange(1_000_000)
        self._warm: OrderedDict[str, str] = OrderedDict()

    # --- the targets in turn ------------------------------------------------------------------------------------------

    async def answer(self, ask: Ask, work: Work[Result], *, may_move_on: Callable[[], bool]) -> Result:
        """`work`'s result at the first target that answers. `may_move_on` is asked before another call after a failed
        one: False once a reader may have seen something. Where the model's targets are used up, its fallback is asked.

        Raises Unserved. Cancelled, it ends its calls upstream.
        """
        tries = _Tries(ask, self._route(ask), may_move_on)
        if not ask.repeated:
            self._retries.deposit()
        while tries.rest and (not tries.called or self._retries.withdraw()):
            target = tries.rest.pop(0)
            try:
                result = await self._target(target, tries.ask, work, tries.rest)
            except ClosedOff as closed:
                self._spare(tries, closed)
            except UpstreamError as error:
                if not self._goes_on(tries, target, error):
                    break
            else:
                self._retried(tries)
                return result
            if not tries.rest:
                self._fall_back(tries)
        raise tries.unserved()

    def _spare(self, tries: _Tries, closed: ClosedOff) -> None:
        if tries.called:
            self._retries.refund()
        tries.closed(closed)

    def _goes_on(self, tries: _Tries, target: Target, error: UpstreamError) -> bool:
        """Whether another call may follow this failure, of the same model or of its fallback."""
        self._retried(tries)
        if tries.called and isinstance(error, _PASSED_OVER):
            self._retries.refund()
        tries.failed(error, target.backend)
        log.info("upstream.failed", job_id=tries.ask.job_id, backend=target.backend, code=error.failure.code)
        row = self._settings.models[tries.ask.model]
        tries.rest = worth_trying(error, target, tries.rest, row, kind_of=self._kind_of)
        somewhere = bool(tries.rest) or self._fallback(tries) is not None
        if not (error.retryable or somewhere) or not tries.may_move_on():
            return False
        if somewhere and isinstance(error, ContextTooLong) and tries.rest:
            tries.forget()
        return True

    def _kind_of(self, target: Target) -> str:
        return self._fleet.backends[target.backend].kind

    def _fallback(self, tries: _Tries) -> tuple[Ask, list[Target]] | None:
        """The model to ask instead, and its targets here; None where none that may serve this was not asked yet."""
        # Vectors of another model would be of no use to anyone.
        if tries.ask.endpoint == EMBEDDINGS:
            return None
        name = instead(tries.last_word, self._settings.models[tries.ask.model].fallback)
        if name is None or name in tries.models:
            return None
        if not serves(self._settings.models[name], tries.ask.body, tries.ask.prompt_tokens):
            return None
        ask = replace(tries.ask, model=name)
        targets = self._route(ask)
        return (ask, targets) if targets else None

    def _fall_back(self, tries: _Tries) -> None:
        found = self._fallback(tries)
        if found is None:
            return
        log.info("upstream.fell_back", job_id=tries.ask.job_id, model=tries.ask.model, other=found[0].model)
        tries.turn_to(*found)

    def _retried(self, tries: _Tries) -> None:
        if tries.called:
            self._metrics.retry("next")

    def again(self, claim: Claim, unserved: Unserved, *, left_s: float) -> GiveBack | None:
        """How a job goes back into the queue after this, paid for; None where it ends with the failure."""
        job, missed = claim.job, unserved.missed
        last = claim.failures + 1 >= job.max_attempts
        step = next_try(
            missed,
            Prospects(
                failures=claim.failures,
                left_ms=int(left_s * 1000),
                waited_for=job.priority is Priority.INTERACTIVE,
                affordable=last or self._retries.affords,
            ),
            jitter=self._jitter.random(),
        )
        if step is None:
            return None
        if step.counts and not last:
            self._retries.borrow()
            self._metrics.retry("later")
        return GiveBack(unserved.failure, step.delay_ms, counts=step.counts, backend=unserved.backend)

    def _route(self, ask: Ask) -> list[Target]:
        row = self._settings.models.get(ask.model)
        if row is None:
            text = f"No backend of this worker serves {ask.model!r}."
            raise Unserved(ModelNotFound(text), Missed(called=True, may_recur=False))
        targets = [target for target in row.targets if target.backend in self._fleet.backends]
        if len(targets) < 2:
            return targets
        self._turn += 1
        standings = self._fleet.standings([target.backend for target in targets])
        warm = self._warm.get(ask.batch_key, "")
        grouped = by_room(row, targets, ask.prompt_tokens, ask.answer_limit)
        return [one for group in grouped for one in in_order(group, standings, turn=self._turn, warm=warm)]

    def _warmed(self, ask: Ask, backend: str) -> None:
        if not ask.batch_key:
            return
        self._warm[ask.batch_key] = backend
        self._warm.move_to_end(ask.batch_key)
        if len(self._warm) > WARM_KEYS:
            self._warm.popitem(last=False)

    # --- one target, and perhaps another beside it --------------------------------------------------------------------

    async def _target(self, target: Target, ask: Ask, work: Work[Result], rest: list[Target]) -> Result:
        after_ms = self._settings.models[ask.model].hedge_after_ms
        if after_ms is None or not ask.stream:  # an answer of one piece has no first token to be slow with
            result = await self._caller.call(target, ask, work, never_raced)
        else:
            self._hedges.deposit()
            target, result = await self._raced(target, ask, work, rest, after_ms / 1000)
        self._warmed(ask, target.backend)
        return result

    async def _raced(
        self, target: Target, ask: Ask, work: Work[Result], rest: list[Target], after_s: float
    ) -> tuple[Target, Result]:
        race: Race[Result] = Race()
        try:
            race.enter(lambda rivals: self._caller.call(target, ask, work, rivals))
            if not await race.undecided(after_s) or (second := self._hedge(rest)) is None:
                return target, await race.result()
            log.info("upstream.hedged", job_id=ask.job_id, backend=target.backend, second=second.backend)
            race.enter(lambda rivals: self._caller.call(second, ask, work, rivals))
            result = await race.result()
            self._metrics.hedge("won" if race.winner else "lost")
            return second if race.winner else target, result
        finally:
            await race.stop()

    def _hedge(self, rest: list[Target]) -> Target | None:
        """The target for a second call, paid for; None where there is none with a free slot, or no budget."""
        for target in rest:
            # A small backend that nobody calls has granted nothing yet: what could be had counts.
            room = self._fleet.slots.obtainable(target.backend)
            if room > 0 and self._fleet.standing(target.backend).usable and self._hedges.withdraw():
                rest.remove(target)
                return target
        return None
