"""Gathers embedding jobs that are alike into one call upstream, and hands each its part of what came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog

from common.contracts import FailedTarget, Job, Usage
from common.queue import Claim
from workers.attempts import Unserved
from workers.caller import Ask, Begin, Result, Work
from workers.engine import GiveBack
from workers.providers.base import Call, Embedded, Provider
from workers.providers.vectors import inputs_of

log = structlog.get_logger(__name__)

MOST_INPUTS: Final = 512
MOST_TOKENS: Final = 16_384
"""About what goes upstream in one call beside others: more only holds up the small ones. A larger job goes alone."""
WINDOW_S: Final = 0.003
"""How long a call waits for company while another of its kind is under way; an idle worker waits for none."""
REFUSALS: Final = frozenset({"upstream_refused", "context_length_exceeded"})
# What is the caller's own affair, and no part of what goes upstream.
_OWN_FIELDS: Final = frozenset({"input", "model", "encoding_format", "metadata"})


@dataclass(frozen=True, slots=True)
class Part:
    """One job's embeddings, its share of the usage, and where they were made, after whom else had failed."""

    vectors: list[bytes]
    usage: Usage
    backend: str
    upstream_model: str = ""
    failed: list[FailedTarget] = field(default_factory=list[FailedTarget])


class Answers(Protocol):
    """Where calls are made: `workers.attempts.Attempts`."""

    async def answer(self, ask: Ask, work: Work[Result], *, may_move_on: Callable[[], bool]) -> Result:
        """`work`'s result at the first target that answers. Raises Unserved."""
        ...

    def again(self, claim: Claim, unserved: Unserved, *, left_s: float) -> GiveBack | None:
        """How a job goes back into the queue after this; None where it ends with the failure."""
        ...


class Missing:
    """Why a job got no embeddings, and what its fellows were told about another attempt."""

    def __init__(self, attempts: Answers, unserved: Unserved, failed: list[FailedTarget]) -> None:
        self.failure = unserved.failure
        self.backend = unserved.backend
        self.upstream_model = ""
        self.failed = failed
        self._attempts = attempts
        self._unserved = unserved
        self._told: dict[int, GiveBack | None] = {}

    def back(self, claim: Claim, left_s: float) -> GiveBack | None:
        """How the job goes back into the queue, or None where it ends with the failure.

        Who failed together comes back together: one call again, and one retry paid for.
        """
        last = claim.failures + 1 >= claim.job.max_attempts
        if last or claim.failures not in self._told:
            self._told[claim.failures] = self._attempts.again(claim, self._unserved, left_s=left_s)
        again = self._told[claim.failures]
        return again if again is not None and again.delay_ms < left_s * 1000 else None


@dataclass(eq=False, slots=True)
class Member:
    """A job that wants embeddings, until it gets them or leaves. `ends_s`: its deadline on the monotonic clock."""

    claim: Claim
    inputs: list[Any]
    ends_s: float
    got: asyncio.Future[Part | Missing] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    group: _Group | None = None

    @property
    def tokens(self) -> int:
        return self.claim.job.prompt_tokens


class _Group:
    """Jobs that share a call. It ends when the last of them has left."""

    def __init__(self, model: str, most_inputs: int = MOST_INPUTS) -> None:
        self.model = model
        self.members: list[Member] = []
        self.sent: list[Member] = []
        self.full = asyncio.Event()
        self.task: asyncio.Task[bool] | None = None
        self._most_inputs = most_inputs
        self._inputs = 0
        self._tokens = 0

    def takes(self, member: Member) -> bool:
        """Whether there is room for one more."""
        if self.task is not None and self.task.cancelling():
            return False
        return self._inputs + len(member.inputs) <= self._most_inputs and self._tokens + member.tokens <= MOST_TOKENS

    def add(self, member: Member) -> None:
        """Takes a job in."""
        self.members.append(member)
        member.group = self
        self._inputs += len(member.inputs)
        self._tokens += member.tokens
        if self._inputs >= self._most_inputs or self._tokens >= MOST_TOKENS:
            self.full.set()

    def remove(self, member: Member) -> None:
        """Lets a job go. The call goes on for the others, and ends where there is none."""
        if member not in self.members:
            return
        self.members.remove(member)
        self._inputs -= len(member.inputs)
        self._tokens -= member.tokens
        if not self.members and self.task is not None:
            self.task.cancel()

    def depart(self) -> list[Member]:
        """Those who are there when the call goes out."""
        self.sent = list(self.members)
        return self.sent


class Gatherer:
    """The groups of one worker. A group takes jobs in until its call goes out, which a busy backend may put off."""

    def __init__(self, attempts: Answers) -> None:
        self._attempts = attempts
        self._open: dict[bytes, _Group] = {}
        self._flying: Counter[bytes] = Counter()
        self._most: dict[str, int] = {}

    async def embed(self, member: Member) -> Part | Missing:
        """The job's embeddings, or why there are none. Cancelled, the job leaves and harms no other."""
        self._join(member)
        try:
            return await member.got
        finally:
            if member.group is not None:
                member.group.remove(member)

    def _join(self, member: Member) -> None:
        key, model = key_of(member.claim.job), member.claim.job.model
        group = self._open.get(key)
        if group is not None and group.takes(member):
            group.add(member)
            return
        if group is not None:
            group.full.set()
        self._open[key] = group = _Group(model, self._most.get(model, MOST_INPUTS))
        group.add(member)
        self._start(group, self._gather(key, group))

    def _start(self, group: _Group, work: Coroutine[Any, Any, bool]) -> None:
        group.task = task = asyncio.create_task(work, name="embeddings")
        task.add_done_callback(lambda done: _pass_on(group, done))

    async def _gather(self, key: bytes, group: _Group) -> bool:
        def close() -> None:
            if self._open.get(key) is group:
                del self._open[key]

        try:
            await self._window(key, group)
            self._flying[key] += 1
            try:
                return await self._serve(group, close)
            finally:
                self._flying[key] -= 1
        finally:
            close()
            if not self._flying[key]:
                del self._flying[key]

    async def _window(self, key: bytes, group: _Group) -> None:
        """Lets those join that were claimed together; while another such call is under way, a little longer."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self._flying[key]:
            with suppress(TimeoutError):
                async with asyncio.timeout(WINDOW_S):
                    await group.full.wait()

    async def _serve(self, group: _Group, close: Callable[[], None]) -> bool:
        """Whether the call was answered; each member has its part then, or knows what is missing."""

        async def work(provider: Provider, call: Call, begin: Begin) -> list[tuple[Member, Part]]:
            close()
            sent = group.depart()
            embedded = await provider.embed(replace(call, body={**call.body, "input": joined(sent)}))
            begin()
            return list(zip(sent, split(embedded, sent, call), strict=True))

        ask = _ask(group.members)
        try:
            parts = await self._attempts.answer(ask, work, may_move_on=lambda: True)
        except Unserved as unserved:
            if len(group.sent) > 1 and unserved.failure.code in REFUSALS:
                await self._apart(group)
            else:
                _give(group.members, Missing(self._attempts, unserved, ask.failed))
            return False
        for member, part in parts:
            _give([member], replace(part, failed=ask.failed))
        return True

    async def _apart(self, group: _Group) -> None:
        """Each by itself, so that what was wrong with one fails no other.

        Where nothing was wrong with any, they were too many at once: so many do not go together again.
        """
        log.info("embeddings.apart", model=group.model, jobs=len(group.members))
        members, group.members = group.members, []
        singles = [self._single(group.model, member) for member in members]
        answered = await asyncio.gather(*singles, return_exceptions=True)
        if len(answered) == len(group.sent) and all(one is True for one in answered):
            self._most[group.model] = max(1, sum(len(member.inputs) for member in members) // 2)
            log.warning("embeddings.fewer_at_once", model=group.model, inputs=self._most[group.model])

    def _single(self, model: str, member: Member) -> asyncio.Task[bool]:
        group = _Group(model)
        group.add(member)
        self._start(group, self._serve(group, lambda: None))
        assert group.task is not None
        return group.task


# --- pure -------------------------------------------------------------------------------------------------------------


def key_of(job: Job) -> bytes:
    """What two jobs must have in common to share a call: all but their inputs, also their class and kind of input."""
    wanted = {name: value for name, value in job.body.items() if name not in _OWN_FIELDS and value is not None}
    kind = "text" if isinstance(inputs_of(job.body)[0], str) else "tokens"
    words = (job.model, int(job.priority), job.batch_key, kind, wanted)
    return orjson.dumps(words, option=orjson.OPT_SORT_KEYS)


def _ask(members: Sequence[Member]) -> Ask:
    """What the group asks for; the inputs come when the call goes out."""
    first = members[0].claim.job
    return Ask(
        model=first.model,
        endpoint=first.endpoint,
        body={name: value for name, value in first.body.items() if name not in _OWN_FIELDS},
        stream=False,
        ends_s=max(member.ends_s for member in members),
        priority=first.priority,
        request_id=first.request_id,
        job_id=first.id,
        repeated=all(member.claim.failures > 0 for member in members),
    )


def joined(members: Sequence[Member]) -> list[Any]:
    """All inputs, member after member."""
    return [one for member in members for one in member.inputs]


def split(embedded: Embedded, members: Sequence[Member], call: Call) -> list[Part]:
    """Each member's part, in their order."""
    usages = split_usage(embedded.usage, [member.tokens for member in members])
    parts: list[Part] = []
    at = 0
    for member, usage in zip(members, usages, strict=True):
        vectors = embedded.vectors[at : at + len(member.inputs)]
        parts.append(Part(vectors, usage, call.backend.name, call.model))
        at += len(member.inputs)
    return parts


def split_usage(usage: Usage | None, estimates: Sequence[int]) -> list[Usage]:
    """The usage in shares by the estimates, which come to exactly the whole. Without any, the estimates themselves.

    What was not counted for the job alone says so: `estimated`, or `apportioned`.
    """
    if usage is None:
        return [Usage(estimate, 0, {"estimated": True}) for estimate in estimates]
    if len(estimates) == 1:
        return [Usage(usage.prompt_tokens, 0, usage.details)]
    return [Usage(share, 0, {"apportioned": True}) for share in shares(usage.prompt_tokens, estimates)]


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """The total in whole shares by weight, whose sum is the total; what is left goes to the largest remainders."""
    whole = sum(weights)
    if whole == 0:
        return shares(total, [1] * len(weights))
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


# --- futures ----------------------------------------------------------------------------------------------------------


def _give(members: Sequence[Member], got: Part | Missing) -> None:
    for member in members:
        if not member.got.done():
            member.got.set_result(got)


def _pass_on(group: _Group, task: asyncio.Task[bool]) -> None:
    """A fault of ours ends the jobs that wait for this call; nobody waits for ever."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    for member in group.members:
        if not member.got.done():
            member.got.set_exception(error)
