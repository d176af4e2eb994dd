"""One call at one target: its breaker asked, a slot held, an API key chosen, the outcome reported.

It knows nothing of what an answer is: `work` makes the call, and says by `begin` that the answer has begun.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import structlog

from common.breaker import Verdict
from common.catalogue import Target
from common.clock import Clock
from common.contracts import FailedTarget, JsonObject, Priority
from common.errors import (
    LaterError,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamUnsupported,
)
from common.metrics import UpstreamCall, WorkerMetrics
from workers.breakers import PROBED_MS, blames_backend
from workers.fleet import Fleet
from workers.keypool import ApiKey, Block, KeyPool, judge, limited, refused
from workers.providers.base import Call, Provider

log = structlog.get_logger(__name__)

DEADLINE_MARGIN_S: Final = 0.05
PROBE_FIRST: Final = -1
"""A probe's place in the line for a slot: the whole fleet waits for its answer."""

Result = TypeVar("Result")
Begin = Callable[[], None]
Work = Callable[[Provider, Call, Begin], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a public model, wherever it will be answered.

    `ends_s`: its deadline on the monotonic clock. `repeated`: an earlier attempt at it failed. `prompt_tokens`: an
    estimate, 0 where nobody made one; `answer_limit`: the most tokens of an answer. `failed`: the targets that took
    the ask and did not answer, or took none, as they come; also after a fallback.
    """

    model: str
    endpoint: str
    body: JsonObject
    stream: bool
    ends_s: float
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    batch_key: str = ""
    request_id: str = ""
    job_id: str = ""
    repeated: bool = False
    prompt_tokens: int = 0
    answer_limit: int | None = None
    failed: list[FailedTarget] = field(default_factory=list, compare=False)


class ClosedOff(Exception):
    """This target takes no call now; `error` says why, `wait_ms` for how long at least."""

    def __init__(self, wait_ms: int, error: UpstreamError) -> None:
        super().__init__(error.failure.code)
        self.wait_ms = wait_ms
        self.error = error


@dataclass(slots=True)
class _Turn:
    """One target's turn at an ask. `rivals` tells a race that its answer has begun, and raises where it is lost.

    `called`: a request was made, or is being made. `probe`: on the breaker's permission for its probe.
    `status` and `pace` are of the last key's refusal: its status, and how long its headers say the key must rest.
    """

    target: Target
    ask: Ask
    rivals: Begin
    probe: bool = False
    called: bool = False
    begun: bool = False
    status: int = 0
    pace: Block | None = None

    @property
    def backend(self) -> str:
        return self.target.backend


class Caller:
    """Makes the calls of one worker."""

    def __init__(self, fleet: Fleet, providers: Mapping[str, Provider], clock: Clock, metrics: WorkerMetrics) -> None:
        self._fleet = fleet
        self._providers = providers
        self._clock = clock
        self._metrics = metrics

    async def call(self, target: Target, ask: Ask, work: Work[Result], rivals: Begin) -> Result:
        """`work`'s result at this target. Raises ClosedOff or an UpstreamError, and what `rivals` raises.

        Of the first two the ask keeps a note.
        """
        turn = _Turn(target, ask, rivals)
        try:
            return await self._in_line(turn, work)
        except (ClosedOff, UpstreamError) as error:
            _note(ask, target, error)
            raise
        finally:
            if turn.probe and not turn.called:  # the next one may find out what this one did not
                self._fleet.breakers.released(turn.backend)

    async def _in_line(self, turn: _Turn, work: Work[Result]) -> Result:
        name = turn.backend
        line = self._fleet.slots.lines[name]
        # Whoever is sure to be refused waits in no line.
        if self._fleet.wait_ms(name):
            turn.probe = await self._permission(name)
        if not line.take_now():
            await line.take(PROBE_FIRST if turn.probe else turn.ask.priority)
        try:
            turn.probe = turn.probe or await self._permission(name)
            return await self._with_keys(turn, work)
        finally:
            line.give()

    async def _permission(self, backend: str) -> bool:
        """Whether the call is the breaker's probe. Raises ClosedOff where it may not be made."""
        keys = self._fleet.keys.get(backend)
        if keys is not None and keys.wait_s > 0:
            raise _without_key(keys)
        try:
            verdict = await self._fleet.breakers.ask(backend)
        except LaterError:  # without the store nobody's probe is the only one
            raise ClosedOff(PROBED_MS, UpstreamUnavailable()) from None
        if verdict is Verdict.REFUSED:
            wait_ms = self._fleet.breakers.rest_ms(backend)
            raise ClosedOff(wait_ms, UpstreamUnavailable(retry_after_s=wait_ms / 1000))
        return verdict is Verdict.PROBE

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def _with_keys(self, turn: _Turn, work: Work[Result]) -> Result:
        """The result with the first key that is not refused: that is the key's matter, not the backend's.

        Another key's call is paid for by no budget: a refused key rests, so there are never more of them than keys.
        """
        keys = self._fleet.keys.get(turn.backend)
        if keys is None:
            return await self._once(turn, work, None)
        while (key := keys.next()) is not None:
            turn.status, turn.pace = 0, None
            try:
                return await self._once(turn, work, key)
            except UpstreamError as error:
                self._judge(turn, key, error)
                if turn.begun or not keys.rests(key) or not keys.usable or not _of_key(error):
                    _wait_for_another(keys, error)
                    raise
                self._metrics.retry("key")
        raise _without_key(keys)

    def _judge(self, turn: _Turn, key: ApiKey, error: UpstreamError) -> None:
        """Leaves the key alone where it was refused or met a limit; only the body tells which: both may be a 429."""
        block = turn.pace
        if isinstance(error, UpstreamCredentials):
            block = refused(turn.status)
        elif isinstance(error, UpstreamBusy):
            block = limited(turn.status, turn.pace, error.failure.retry_after_s)
        if block is not None:
            self._fleet.rest_key(turn.backend, key, block)

    def _answered(self, turn: _Turn, key: ApiKey, status: int, headers: Mapping[str, str]) -> None:
        turn.status, turn.pace = status, judge(status, headers)
        if status == 200 and turn.pace is not None:  # its answer may take long, and other calls are made meanwhile
            self._fleet.rest_key(turn.backend, key, turn.pace)

    # --- one request --------------------------------------------------------------------------------------------------

    async def _once(self, turn: _Turn, work: Work[Result], key: ApiKey | None) -> Result:
        provider = self._providers[self._fleet.backends[turn.backend].kind]
        with self._metrics.upstream_call(turn.backend) as timed:
            turn.called = True
            try:
                result = await work(provider, self._call(turn, key), partial(self._begin, turn, timed))
            except UpstreamUnsupported:
                turn.called = timed.made = False
                raise
            except UpstreamError as error:
                self._report(turn, error)
                raise
        if not (turn.probe and turn.begun):
            self._fleet.breakers.succeeded(turn.backend, probe=turn.probe)
        return result

    def _call(self, turn: _Turn, key: ApiKey | None) -> Call:
        backend, ask = self._fleet.backends[turn.backend], turn.ask
        return Call(
            backend=backend,
            endpoint=ask.endpoint,
            model=turn.target.model,
            public_model=ask.model,
            body=ask.body,
            stream=ask.stream,
            timeout_s=min(backend.timeout_s, ask.ends_s - self._clock.monotonic_s()),
            api_key=None if key is None else key.secret,
            request_id=ask.request_id,
            priority=ask.priority,
            tenant=ask.tenant,
            on_answer=None if key is None else partial(self._answered, turn, key),
        )

    def _begin(self, turn: _Turn, timed: UpstreamCall) -> None:
        turn.rivals()
        turn.begun = True
        timed.first_token()
        if turn.probe:  # that it answers is what was to be found out
            self._fleet.breakers.succeeded(turn.backend, probe=True)

    def _report(self, turn: _Turn, error: UpstreamError) -> None:
        self._metrics.upstream_error(turn.backend, error.failure.code)
        probe = turn.probe and not turn.begun
        if isinstance(error, UpstreamTimeout) and self._clock.monotonic_s() >= turn.ask.ends_s - DEADLINE_MARGIN_S:
            return  # the job's time was up, not the backend's
        if blames_backend(error):
            self._fleet.breakers.failed(turn.backend, probe=probe)
        elif probe or not turn.probe:
            self._fleet.breakers.succeeded(turn.backend, probe=probe)


def _note(ask: Ask, target: Target, error: ClosedOff | UpstreamError) -> None:
    failure = (error.error if isinstance(error, ClosedOff) else error).failure
    ask.failed.append(FailedTarget(target.backend, target.model, failure.code))


# --- pure -------------------------------------------------------------------------------------------------------------


def _of_key(error: UpstreamError) -> bool:
    """Whether another key of the same backend may do better."""
    return isinstance(error, UpstreamBusy | UpstreamCredentials)


def _without_key(keys: KeyPool) -> ClosedOff:
    """Why a backend takes no call while all its keys rest: to wait is of use only where some merely met a limit."""
    wait_s = keys.wait_s
    error = UpstreamCredentials() if keys.all_refused else UpstreamBusy(retry_after_s=wait_s)
    return ClosedOff(int(wait_s * 1000) + 1, error)


def _wait_for_another(keys: KeyPool, error: UpstreamError) -> None:
    """Raises UpstreamBusy where this key is refused, but another one only met a limit and will do later."""
    if isinstance(error, UpstreamCredentials) and (wait_s := keys.pace_s) > 0:
        raise UpstreamBusy(retry_after_s=wait_s) from error
