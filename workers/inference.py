"""The one job: have a target stream its answer, pass tokens on, say how it ended.

Before the first token a failed attempt goes to the next target freely, and then back into the queue for a later try.
After it, never in silence: the job ends as `upstream_interrupted`, or starts anew where the caller allowed that.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Iterator
from contextlib import aclosing
from typing import Any, Final

import orjson

from common.clock import Clock
from common.contracts import Chunk, FailedTarget, Failure, Job, OnInterrupt, Outcome, State, Usage
from common.errors import AnswerTooLong
from common.metrics import WorkerMetrics
from common.queue import Claim, Settlement
from common.tokens import TokenCounter
from workers.answer import Answer, Unsaid
from workers.attempts import Attempts, Unserved
from workers.caller import Ask, Begin
from workers.providers.base import Call, Provider
from workers.providers.shapes import limit_of
from workers.publisher import Publisher
from workers.runs import GiveBack, costing_only_this

LAST_MOMENT_S: Final = 0.05
"""A call's own limit is the time left to the deadline, and may end it a moment before ours does."""
DEADLINE: Final = Failure("deadline_exceeded", "The job's deadline passed before the answer was complete.")


@dataclasses.dataclass(frozen=True, slots=True)
class Inference:
    """What the runs of one worker share."""

    attempts: Attempts
    publisher: Publisher
    clock: Clock
    metrics: WorkerMetrics
    tokens: TokenCounter
    max_output_bytes: int

    def begin(self, claim: Claim) -> Generation:
        """A run for a job just claimed."""
        return Generation(self, claim)


class Generation:
    """One attempt at one job."""

    def __init__(self, shared: Inference, claim: Claim) -> None:
        self.claim = claim
        self._shared = shared
        self._answer = Answer(claim.job.prompt_tokens)
        self._track = shared.publisher.track(claim.job.pool, claim.job.id, claim.fence)
        self._started_s = shared.clock.monotonic_s()
        self._ends_s = self._started_s + (claim.deadline_ms - claim.claimed_ms) / 1000
        self._first_token_ms: int | None = None
        self._backend = ""
        self._other_model = ""
        self._upstream_model = ""
        self._failed: list[FailedTarget] = []
        self._emit = self._track.publish if claim.job.stream else self._track.hold

    async def perform(self) -> Settlement | GiveBack:
        """The job's end, or that it should run again."""
        try:
            async with asyncio.timeout(self._left_s()):
                await self._shared.attempts.answer(self._ask(), self._follow, may_move_on=self._start_over)
        except TimeoutError:
            return await self.break_off(State.EXPIRED, DEADLINE)
        except Unserved as unserved:
            return await self._after(unserved)
        return await self._end(State.SUCCEEDED, None, await self._usage())

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """The end of an attempt that was stopped: what was produced stays, and is counted."""
        produced = self._first_token_ms is not None
        return await self._end(status, failure, await self._usage() if produced else None)

    @property
    def may_restart(self) -> bool:
        """Whether it may begin anew: no reader can have seen anything of it, or the caller allows that."""
        return self.claim.job.on_interrupt is OnInterrupt.RESTART or not self._track.anything_sent

    def mute(self) -> None:
        """From now on it begins no write to its readers."""
        self._track.mute()

    async def landed(self) -> None:
        """Returns once nothing of it is on its way to readers any more."""
        await self._track.landed()

    # --- calling ------------------------------------------------------------------------------------------------------

    def _ask(self) -> Ask:
        job = self.claim.job
        return Ask(
            model=job.model,
            endpoint=job.endpoint,
            body=job.body,
            stream=job.stream,
            ends_s=self._ends_s,
            priority=job.priority,
            tenant=job.tenant,
            batch_key=job.batch_key,
            request_id=job.request_id,
            job_id=job.id,
            repeated=self.claim.failures > 0,
            prompt_tokens=job.prompt_tokens,
            answer_limit=limit_of(job.body),
            failed=self._failed,
        )

    async def _follow(self, provider: Provider, call: Call, begin: Begin) -> None:
        """Passes a call's answer on as it comes; several may be under way until the first of them begins."""
        limit_bytes, emit = self._shared.max_output_bytes, self._emit
        answer, begun = Answer(self.claim.job.prompt_tokens), False
        unsaid = Unsaid()
        async with aclosing(provider.stream(call)) as chunks:
            async for chunk in chunks:
                answer.add(chunk)
                if not chunk.choices:
                    continue
                if not begun:
                    if unsaid.keeps(chunk):
                        continue
                    begin()
                    begun = True
                    self._begun(answer, call, unsaid)
                emit(encode_event(chunk, self._other_model))
                if answer.held_bytes > limit_bytes:
                    raise AnswerTooLong(f"The answer is longer than {limit_bytes} bytes.")
        if not begun and unsaid.chunks:
            begin()
            self._begun(answer, call, unsaid)

    def _begun(self, answer: Answer, call: Call, unsaid: Unsaid) -> None:
        self._answer, self._backend, self._upstream_model = answer, call.backend.name, call.model
        self._other_model = call.public_model if call.public_model != self.claim.job.model else ""
        self._first_token_ms = self._since_created_ms()
        for chunk in unsaid.chunks:
            self._emit(encode_event(chunk, self._other_model))

    def _start_over(self) -> bool:
        """Whether the next target may begin with an empty answer: nothing has left the house yet."""
        if self._track.anything_sent:
            return False
        self._answer = Answer(self.claim.job.prompt_tokens)
        self._track.pending.clear()
        self._first_token_ms = None
        return True

    # --- ending -------------------------------------------------------------------------------------------------------

    async def _after(self, unserved: Unserved) -> Settlement | GiveBack:
        failure, sent = unserved.failure, self._track.anything_sent
        self._backend = self._backend or unserved.backend
        if self._left_s() <= LAST_MOMENT_S:
            return await self.break_off(State.EXPIRED, DEADLINE)
        if sent:  # whatever broke it off: the request itself was taken
            unserved.missed = dataclasses.replace(unserved.missed, may_recur=True)
        if not sent or self.claim.job.on_interrupt is OnInterrupt.RESTART:
            back = self._shared.attempts.again(self.claim, unserved, left_s=self._left_s())
            if back is not None:
                return back
        if sent:
            text = f"The answer broke off after its first tokens: {failure.message}"
            failure = Failure("upstream_interrupted", text)
        return await self.break_off(State.FAILED, failure)

    async def _usage(self) -> Usage:
        """What the answer took; what of it the upstream did not tell is counted here, or guessed."""
        if self._answer.untold:
            with costing_only_this():
                await asyncio.gather(*self._counts())
        return self._answer.usage

    def _counts(self) -> Iterator[Awaitable[None]]:
        answer, tokens = self._answer, self._shared.tokens

        async def take(name: str, count: Awaitable[int]) -> None:
            answer.estimate(**{name: await count})

        if "prompt_tokens" in answer.untold:
            yield take("prompt_tokens", tokens.count_prompt(self.claim.job.body))
        if "completion_tokens" in answer.untold:
            yield take("completion_tokens", tokens.count(answer.texts()))

    async def _end(self, status: State, failure: Failure | None, usage: Usage | None) -> Settlement:
        events, seq = await self._track.finish()
        timings = {"queued": self.claim.claimed_ms - self.claim.created_ms, "total": self._since_created_ms()}
        if self._first_token_ms is not None:
            timings["first_token"] = self._first_token_ms
        answered = self._backend, self._other_model, self._upstream_model, self._failed
        outcome = Outcome(status, self._answer.finish_reason, usage, failure, timings, *answered)
        self._shared.metrics.job_ended(self.claim.job, outcome)
        has_answer = status is State.SUCCEEDED or usage is not None
        return Settlement(
            outcome=outcome,
            events=events,
            events_seq=seq,
            outcome_seq=seq + 1,
            result=orjson.dumps(self._answer.result()) if has_answer else b"",
            share_result=not self.claim.job.stream,
            answer_tokens=told_length(self.claim.job, outcome),
        )

    def _left_s(self) -> float:
        return self._ends_s - self._shared.clock.monotonic_s()

    def _since_created_ms(self) -> int:
        waited_ms = self.claim.claimed_ms - self.claim.created_ms
        return waited_ms + round((self._shared.clock.monotonic_s() - self._started_s) * 1000)


def told_length(job: Job, outcome: Outcome) -> int:
    """The tokens that each answer of a job had, where that tells how long the model's answers are; else 0."""
    if not job.answers or outcome.status is not State.SUCCEEDED or outcome.usage is None:
        return 0
    return math.ceil(outcome.usage.completion_tokens / job.answers)


def encode_event(chunk: Chunk, other_model: str = "") -> bytes:
    """The chunk as a stream event: a JSON object without line breaks that begins with `choices`.

    Before them stands `model`, where another model than the job's answers.
    """
    event: dict[str, Any] = {"choices": chunk.choices}
    if other_model:
        event = {"model": other_model, **event}
    if chunk.extra:
        event.update(chunk.extra)
    return orjson.dumps(event)
