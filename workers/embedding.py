"""Embedding jobs: those alike that run at once go upstream as one call, and come apart again, each with its own end."""

from __future__ import annotations

import asyncio
from binascii import b2a_base64
from dataclasses import dataclass, replace
from typing import Final

import orjson

from common.clock import Clock
from common.contracts import Failure, JsonObject, Outcome, State, Usage
from common.metrics import WorkerMetrics
from common.queue import Claim, Settlement
from common.tokens import TokenCounter
from workers.attempts import Attempts
from workers.gathering import Gatherer, Member, Missing, Part
from workers.providers.vectors import inputs_of
from workers.runs import GiveBack, Unseen, costing_only_this

ENDPOINT: Final = "/v1/embeddings"
SHARED_BYTES: Final = 256 * 1024
"""What a gateway that waits is told along with the end; a larger result it reads from the job, so it is there once."""
DEADLINE: Final = Failure("deadline_exceeded", "The job's deadline passed before its embeddings were made.")


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the runs of one worker share."""

    gatherer: Gatherer
    clock: Clock
    metrics: WorkerMetrics
    tokens: TokenCounter
    most_bytes: int


class Embedding:
    """Begins runs of embedding jobs. `most_bytes`: how long one job's embeddings may be together."""

    def __init__(
        self, attempts: Attempts, clock: Clock, metrics: WorkerMetrics, tokens: TokenCounter, *, most_bytes: int
    ) -> None:
        self._shared = _Shared(Gatherer(attempts), clock, metrics, tokens, most_bytes)

    def begin(self, claim: Claim) -> EmbeddingRun:
        """A run for a job just claimed."""
        return EmbeddingRun(claim, self._shared)


class EmbeddingRun(Unseen):
    """One attempt at one job."""

    def __init__(self, claim: Claim, shared: _Shared) -> None:
        self.claim = claim
        self._shared = shared
        self._started_s = shared.clock.monotonic_s()
        self._got: Part | Missing | None = None

    async def perform(self) -> Settlement | GiveBack:
        """The job's end, or that it should run again."""
        left_s = (self.claim.deadline_ms - self.claim.claimed_ms) / 1000
        member = Member(self.claim, inputs_of(self.claim.job.body), self._started_s + left_s)
        try:
            async with asyncio.timeout(left_s):
                got = await self._shared.gatherer.embed(member)
        except TimeoutError:
            return await self.break_off(State.EXPIRED, DEADLINE)
        self._got = got
        if isinstance(got, Missing):
            left_s = member.ends_s - self._shared.clock.monotonic_s()
            return got.back(self.claim, left_s) or self._end(State.FAILED, got.failure)
        return await self._succeed(got)

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """The end of an attempt that was stopped: of embeddings there is all or nothing."""
        return self._end(status, failure)

    async def _succeed(self, part: Part) -> Settlement:
        usage = await self._counted(part.usage)
        texts = [b2a_base64(vector, newline=False).decode() for vector in part.vectors]
        if sum(map(len, texts)) > self._shared.most_bytes:
            text = f"The embeddings are longer than {self._shared.most_bytes} bytes together: ask for fewer at once."
            return self._end(State.FAILED, Failure("upstream_refused", text, "input"), usage)
        result = orjson.dumps({"embeddings": texts, "usage": _shown(usage)})
        return self._end(State.SUCCEEDED, None, usage, result)

    async def _counted(self, usage: Usage) -> Usage:
        """The usage; where the upstream told none, with the tokens of this job's texts counted here."""
        inputs = inputs_of(self.claim.job.body)
        if not usage.details.get("estimated") or not isinstance(inputs[0], str):
            return usage
        with costing_only_this():
            usage = replace(usage, prompt_tokens=await self._shared.tokens.count(inputs))
        return usage

    def _end(
        self, status: State, failure: Failure | None, usage: Usage | None = None, result: bytes = b""
    ) -> Settlement:
        queued_ms = self.claim.claimed_ms - self.claim.created_ms
        took_ms = round((self._shared.clock.monotonic_s() - self._started_s) * 1000)
        timings = {"queued": queued_ms, "total": queued_ms + took_ms}
        finish = "stop" if status is State.SUCCEEDED else None
        outcome = Outcome(status, finish, usage, failure, timings)
        if (got := self._got) is not None:
            outcome = replace(
                outcome, backend=got.backend, upstream_model=got.upstream_model, failed_targets=got.failed
            )
        self._shared.metrics.job_ended(self.claim.job, outcome)
        return Settlement(outcome, outcome_seq=1, result=result, share_result=len(result) <= SHARED_BYTES)


def _shown(usage: Usage) -> JsonObject:
    """OpenAI's usage of an embedding, which has no completion."""
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens, **usage.details}
