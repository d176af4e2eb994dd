"""The one job: choose a target, stream its answer, say how it ended. The only place that retries.

Before the first token a failed attempt goes to the next target freely, and then back into the queue for a later try.
After it, never in silence: the job ends as `upstream_interrupted`, or starts anew where the caller allowed that.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson
import structlog

from common.clock import Clock
from common.config import Backend, Settings, Target
from common.contracts import Chunk, Failure, OnInterrupt, Outcome, State, Usage
from common.errors import UpstreamError, UpstreamProtocolError
from common.metrics import WorkerMetrics
from common.queue import Claim, Settlement
from workers.answer import Answer
from workers.engine import GiveBack
from workers.providers.base import Call, Provider
from workers.publisher import Publisher
from workers.routing import backoff_ms, in_order

log = structlog.get_logger(__name__)

DEADLINE: Final = Failure("deadline_exceeded", "The job's deadline passed before the answer was complete.")


class Inference:
    """What the runs of one worker share: the backends, their slots and keys, what is known of their health."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        publisher: Publisher,
        clock: Clock,
        metrics: WorkerMetrics,
        *,
        healthy: Callable[[], Mapping[str, bool]],
    ) -> None:
        self.settings = settings
        self.providers = providers
        self.publisher = publisher
        self.clock = clock
        self.metrics = metrics
        self.healthy = healthy
        self.slots = {row.name: asyncio.Semaphore(row.concurrency) for row in settings.backends}
        self._turns: dict[str, int] = defaultdict(int)
        self._jitter = random.Random()  # noqa: S311 - back-off is no secret

    def begin(self, claim: Claim) -> Generation:
        """A run for a job just claimed."""
        return Generation(self, claim)

    def targets(self, model: str) -> list[Target]:
        """The model's targets in the order to try them now; empty when this worker does not know the model."""
        row = self.settings.models.get(model)
        if row is None:
            return []
        self._turns[model] += 1
        free = {name: slots._value for name, slots in self.slots.items()}  # pyright: ignore[reportPrivateUsage]
        return in_order(row.targets, healthy=self.healthy(), free=free, turn=self._turns[model])

    def next_key(self, backend: Backend) -> str | None:
        """The backend's next API key, in turn; None where it needs none."""
        if not backend.api_keys:
            return None
        self._turns[backend.name] += 1
        return backend.api_keys[self._turns[backend.name] % len(backend.api_keys)].get_secret_value()

    def wait_before_retry_ms(self, failures: int, failure: Failure) -> int:
        """How long the job rests before its next attempt."""
        return backoff_ms(failures, jitter=self._jitter.random(), retry_after_s=failure.retry_after_s)


class Generation:
    """One attempt at one job."""

    def __init__(self, shared: Inference, claim: Claim) -> None:
        self.claim = claim
        self._shared = shared
        self._answer = Answer(claim.job.prompt_tokens)
        self._track = shared.publisher.track(claim.job.pool, claim.job.id, claim.fence)
        self._started_s = shared.clock.monotonic_s()
        self._first_token_ms: int | None = None
        self._backend = ""
        self._emit = self._track.publish if claim.job.stream else self._track.hold

    async def perform(self) -> Settlement | GiveBack:
        """The job's end, or that it should run again."""
        left_s = (self.claim.deadline_ms - self.claim.claimed_ms) / 1000
        try:
            async with asyncio.timeout(left_s):
                return await self._try_targets(left_s)
        except TimeoutError:
            return await self.break_off(State.EXPIRED, DEADLINE)

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """The end of an attempt that was stopped: what was produced stays, and is counted."""
        produced = self._first_token_ms is not None
        return await self._end(status, failure, self._answer.usage if produced else None)

    # --- trying -------------------------------------------------------------------------------------------------------

    async def _try_targets(self, left_s: float) -> Settlement | GiveBack:
        failure = Failure("model_not_found", f"No backend of this worker serves {self.claim.job.model!r}.")
        retryable = False
        for target in self._shared.targets(self.claim.job.model):
            backend = self._shared.settings.backend_by_name[target.backend]
            try:
                await self._attempt(backend, target, left_s)
                return await self._succeed()
            except UpstreamError as error:
                failure, retryable = error.failure, error.retryable
                self._shared.metrics.upstream_error(backend.name, failure.code)
                log.info("upstream.failed", job_id=self.claim.job.id, backend=backend.name, code=failure.code)
                if self._track.anything_sent or not retryable:
                    break
                self._start_over()
        return await self._after_failure(failure, retryable=retryable)

    async def _after_failure(self, failure: Failure, *, retryable: bool) -> Settlement | GiveBack:
        if self._track.anything_sent:
            if self.claim.job.on_interrupt is OnInterrupt.RESTART:
                return GiveBack(failure, self._shared.wait_before_retry_ms(self.claim.failures, failure))
            text = f"The answer broke off after its first tokens: {failure.message}"
            return await self.break_off(State.FAILED, Failure("upstream_interrupted", text))
        if retryable:
            return GiveBack(failure, self._shared.wait_before_retry_ms(self.claim.failures, failure))
        return await self.break_off(State.FAILED, failure)

    def _start_over(self) -> None:
        """Nothing left the house yet, so the next target begins with an empty answer."""
        self._answer = Answer(self.claim.job.prompt_tokens)
        self._track.pending.clear()
        self._first_token_ms = None

    async def _attempt(self, backend: Backend, target: Target, left_s: float) -> None:
        job = self.claim.job
        call = Call(
            backend=backend,
            endpoint=job.endpoint,
            model=target.model,
            body=job.body,
            stream=job.stream,
            timeout_s=min(backend.timeout_s, left_s),
            api_key=self._shared.next_key(backend),
            request_id=job.request_id,
        )
        self._backend = backend.name
        async with self._shared.slots[backend.name]:
            with self._shared.metrics.upstream_call(backend.name) as timed:
                await self._follow(self._shared.providers[backend.kind], call, timed.first_token)

    async def _follow(self, provider: Provider, call: Call, first_token: Callable[[], None]) -> None:
        limit_bytes = self._shared.settings.max_output_bytes
        answer, emit = self._answer, self._emit
        async with aclosing(provider.stream(call)) as chunks:
            async for chunk in chunks:
                answer.add(chunk)
                if not chunk.choices:
                    continue
                if self._first_token_ms is None:
                    self._first_token_ms = self._since_created_ms()
                    first_token()
                emit(encode_event(chunk))
                if answer.text_bytes > limit_bytes:
                    raise UpstreamProtocolError(f"The answer is longer than {limit_bytes} bytes.")

    # --- ending -------------------------------------------------------------------------------------------------------

    async def _succeed(self) -> Settlement:
        return await self._end(State.SUCCEEDED, None, self._answer.usage)

    async def _end(self, status: State, failure: Failure | None, usage: Usage | None) -> Settlement:
        events, seq = await self._track.finish()
        timings = {"queued": self.claim.claimed_ms - self.claim.created_ms, "total": self._since_created_ms()}
        if self._first_token_ms is not None:
            timings["first_token"] = self._first_token_ms
        outcome = Outcome(status, self._answer.finish_reason, usage, failure, timings, self._backend)
        self._shared.metrics.job_ended(self.claim.job, outcome)
        has_answer = status is State.SUCCEEDED or usage is not None
        return Settlement(
            outcome=outcome,
            events=events,
            events_seq=seq,
            outcome_seq=seq + 1,
            result=orjson.dumps(self._answer.result()) if has_answer else b"",
            share_result=not self.claim.job.stream,
        )

    def _since_created_ms(self) -> int:
        waited_ms = self.claim.claimed_ms - self.claim.created_ms
        return waited_ms + round((self._shared.clock.monotonic_s() - self._started_s) * 1000)


def encode_event(chunk: Chunk) -> bytes:
    """The chunk as a stream event: a JSON object without line breaks that begins with `choices`."""
    event: dict[str, Any] = {"choices": chunk.choices}
    if chunk.extra:
        event.update(chunk.extra)
    return orjson.dumps(event)
