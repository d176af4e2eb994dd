"""The lines of a batch at work: begun as jobs, a bounded number at a time, and ended with them.

Every step is found in SQL before it is done in the queue, and a line's job has one id for ever, so that whoever goes on
after a death repeats no line that has ended and loses none that was begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
import structlog

from common.contracts import Failure, Job, OnDisconnect, OnInterrupt, Outcome, Priority
from common.errors import CallerError, LaterError
from common.ledger.batch_lines import BAD, GOOD, JobEnd, Line, LineEnd
from common.ledger.batches import Batch
from common.queue import Record
from gateway.admission import Manner
from gateway.auth import MEMBER, Principal
from gateway.batches.desk import Desk, Held
from gateway.batches.lines import RawLine, Splitter
from gateway.batches.reading import LineReader
from gateway.batches.records import (
    UNTOLD,
    Ending,
    LineRequest,
    Stub,
    ended_line,
    line_digest,
    line_job_id,
    refused_line,
    request_of,
    undone_line,
    used_tokens,
)
from gateway.dialects.native import JobOptions
from gateway.dialects.shape import UNSHAPEABLE
from gateway.files import span

log = structlog.get_logger(__name__)

MOST_OPEN: Final = 1_000
MOST_OPEN_BYTES: Final = 32 * 1024 * 1024
GROUP: Final = 64
# Lines submitted together: with more of them the gateway's other callers wait noticeably.
AT_ONCE: Final = 16
GROUP_BYTES: Final = 8 * 1024 * 1024
MEND_S: Final = 1.0
TELL_S: Final = 5.0
# What is tried again is a line or a few, so it may be tried sooner than callers are told to come back.
LONGEST_BACK_OFF_S: Final = 2.0

# Nobody reads along, and an attempt that broke off is simply made again.
LINES: Final = Manner(Priority.BATCH, OnDisconnect.CONTINUE, OnInterrupt.RESTART, stream=False)


class Progress:
    """One owner's work on the lines of one batch. Methods may raise Fenced and what says to try again later."""

    def __init__(self, desk: Desk, held: Held) -> None:
        self._desk = desk
        self._held = held
        self._id = held.batch.id
        self._reader: LineReader | None = None
        self._exhausted = False
        self._resume_s = 0.0
        self._mended_s = self._told_s = -TELL_S
        # How many lines are submitted together: fewer where the queue refuses, more again where it doesn't.
        self._at_once = AT_ONCE

    async def close(self) -> None:
        """Reads the input no further."""
        if self._reader is not None:
            await self._reader.close()

    async def go_on(self) -> bool:
        """Whether anything was done: lines ended, lines begun."""
        done = await self._collect(None) + await self._mend()
        return bool(done + await self._begin())

    async def all_ended(self) -> bool:
        """Whether every line was begun and has ended."""
        return self._exhausted and (await self._desk.lines.load(self._id))[0] == 0

    async def stop(self, why: Failure) -> bool:
        """Whether no line is open any more: their jobs are told to end, and those that do for that end as `why`."""
        await self._collect(why)
        if self._passed(self._told_s, TELL_S):
            await self._cancel_jobs()
            self._told_s = self._desk.clock.monotonic_s()
        await self._undo_unknown(why)
        return (await self._desk.lines.load(self._id))[0] == 0

    def _passed(self, since_s: float, seconds: float) -> bool:
        return self._desk.clock.monotonic_s() - since_s >= seconds

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def _collect(self, why: Failure | None) -> int:
        """How many lines ended, as the journal says of their jobs."""
        done = 0
        while found := await self._desk.lines.ended(self._id, most=GROUP, most_bytes=GROUP_BYTES):
            await self._end(await asyncio.to_thread(_told, found), why)
            done += len(found)
        return done

    async def _end(self, ended: Sequence[tuple[Line, Ending]], why: Failure | None) -> None:
        # Beside the event loop: answers may be long, and others want to be served.
        ends = await asyncio.to_thread(_ends, self._id, ended, why)
        await self._held.end(ends, _counted(self._held.batch, ends, [end.outcome for _, end in ended]))
        await self._held.renew()

    async def _taken_from_store(self, lines: Sequence[Line], why: Failure | None) -> None:
        """These lines, whose jobs the journal doesn't have, end as the store says."""
        group: list[tuple[Line, Ending]] = []
        size_bytes = 0
        for line in lines:
            record = await self._desk.queue.get(line.job_id)
            if record is None or (ending := _ending(record)) is None:
                continue
            group.append((line, ending))
            size_bytes += len(ending.result)
            if size_bytes >= GROUP_BYTES:
                await self._end(group, why)
                group, size_bytes = [], 0
        if group:
            await self._end(group, why)

    # --- lines that nobody knows --------------------------------------------------------------------------------------

    async def _mend(self) -> int:
        """How many open lines were found that the journal doesn't know, and that ended or were submitted again.

        Left by an owner that died on the way, refused because too much waits, or accepted without a journal.
        """
        if not self._passed(self._mended_s, MEND_S):
            return 0
        self._mended_s = self._desk.clock.monotonic_s()
        done = after = 0
        while lines := await self._desk.lines.unjournaled(self._id, after=after, most=GROUP):
            after = lines[-1].number
            unknown = await self._unknown(lines, None)
            done += len(unknown)
            for group in _groups(unknown, self._at_once):
                if self._desk.clock.monotonic_s() < self._resume_s:
                    return done - len(unknown)
                await self._begin_again(group)
        return done

    async def _unknown(self, lines: list[Line], why: Failure | None) -> list[Line]:
        """Those that the store doesn't know either; those that ended there end."""
        states = await self._desk.states(lines)
        await self._taken_from_store([one for one in lines if (state := states[one.job_id]) and state.ended], why)
        return [line for line in lines if states[line.job_id] is None]

    async def _begin_again(self, lines: Sequence[Line]) -> None:
        begun, refused, jobs = await self._jobs([raw for line in lines for raw in await self._read(line)])
        if refused:
            await self._held.end(refused, _counted(self._held.batch, refused, []))
        known = {line.number: line.job_id for line in lines}
        for line in begun:
            if line.job_id != known[line.number]:
                # Its model lies in another pool by now.
                await self._desk.lines.rename(self._held.batch, line.number, line.job_id)
        await self._accept(jobs)

    async def _read(self, line: Line) -> list[RawLine]:
        data = await span(self._desk.files, self._held.batch.input_file_id, line.first_byte, line.size_bytes)
        splitter = Splitter(first_byte=line.first_byte, first_line=line.number)
        return splitter.feed(data) + splitter.end()

    async def _undo_unknown(self, why: Failure) -> None:
        after = 0
        while lines := await self._desk.lines.unjournaled(self._id, after=after, most=GROUP):
            after = lines[-1].number
            unknown = await self._unknown(lines, why)
            ends = [undone_line(_stub(self._id, line.number, line.custom_id), why) for line in unknown]
            await self._held.end(ends, {"fence": self._held.batch.fence})

    async def _cancel_jobs(self) -> None:
        """Tells every open line's job to end, in the ledger first: a store that forgets it would be given it again."""
        await self._desk.lines.ask_cancel(self._held.batch)
        after = 0
        while lines := await self._desk.lines.open(self._id, after=after, most=GROUP):
            after = lines[-1].number
            await asyncio.gather(*(self._desk.queue.cancel(line.job_id) for line in lines))
            await self._held.renew()

    # --- lines begun --------------------------------------------------------------------------------------------------

    async def _begin(self) -> int:
        """How many lines were begun: as many as there is room for in the window."""
        done = 0
        while not self._exhausted and self._desk.clock.monotonic_s() >= self._resume_s:
            number, size_bytes = await self._desk.lines.load(self._id)
            room = min(self._at_once, MOST_OPEN - number)
            if room <= 0 or size_bytes >= MOST_OPEN_BYTES:
                break
            raws = await self._next(room)
            self._exhausted = not raws
            if raws:
                await self._begin_these(raws)
            done += len(raws)
            await self._held.renew()
        return done

    async def _next(self, most: int) -> list[RawLine]:
        if self._reader is None:
            batch = self._held.batch
            self._reader = LineReader(
                self._desk.files, batch.input_file_id, first_byte=batch.next_byte, first_line=batch.next_line
            )
        return await self._reader.next(most, GROUP_BYTES)

    async def _begin_these(self, raws: list[RawLine]) -> None:
        begun, refused, jobs = await self._jobs(raws)
        records = {end.number: end for end in refused}
        failed = [_refused(raw, records[raw.number]) for raw in raws if raw.number in records]
        values = _counted(self._held.batch, refused, [])
        values |= {"next_byte": raws[-1].next_byte, "next_line": raws[-1].number + 1}
        await self._held.begin([*begun, *failed], values)
        await self._accept(jobs)

    async def _jobs(self, raws: Sequence[RawLine]) -> tuple[list[Line], list[LineEnd], list[Job]]:
        """The lines that are jobs now; the ends of those that were refused; the jobs."""
        parsed = await asyncio.to_thread(_parsed, self._held.batch, raws)
        left_ms = max(1, self._held.batch.expires_ms - await self._desk.queue.now_ms())
        lines: list[Line] = []
        refused: list[LineEnd] = []
        jobs: list[Job] = []
        for raw, stub, found in parsed:
            try:
                job = self._job(stub, found, left_ms)
            except CallerError as error:
                refused.append(refused_line(stub, error.failure))
            else:
                jobs.append(job)
                lines.append(Line(raw.number, stub.custom_id, raw.first_byte, raw.next_byte - raw.first_byte, job.id))
        return lines, refused, jobs

    def _job(self, stub: Stub, found: LineRequest | CallerError, left_ms: int) -> Job:
        if isinstance(found, CallerError):
            raise found
        batch = self._held.batch
        job = self._desk.admission.job(
            Principal(batch.tenant, MEMBER, batch.weight),
            found.asked,
            JobOptions(deadline_ms=left_ms),
            LINES,
            request_id=batch.id,
            metadata=found.metadata,
        )
        return replace(job, id=line_job_id(job.pool, batch.id, stub.number), batch=batch.id)

    async def _accept(self, jobs: Sequence[Job]) -> None:
        """The jobs are accepted. Where one can't be now, it is tried again later, and nothing is begun before."""
        answers = await asyncio.gather(*(self._desk.journal.accept(job) for job in jobs), return_exceptions=True)
        refused = any(isinstance(answer, LaterError) for answer in answers)
        self._at_once = max(1, self._at_once // 4) if refused else min(AT_ONCE, 2 * self._at_once)
        for answer in answers:
            if isinstance(answer, LaterError):
                back_off_s = min(answer.failure.retry_after_s or MEND_S, LONGEST_BACK_OFF_S)
                self._resume_s = max(self._resume_s, self._desk.clock.monotonic_s() + back_off_s)
                log.info("batch.backs_off", batch=self._id, code=answer.code, seconds=back_off_s)
            elif isinstance(answer, BaseException):
                raise answer


# --- pure -------------------------------------------------------------------------------------------------------------


def _stub(batch_id: str, number: int, custom_id: bytes) -> Stub:
    return Stub(number, line_digest(batch_id, number), custom_id)


def _parsed(batch: Batch, raws: Sequence[RawLine]) -> list[tuple[RawLine, Stub, LineRequest | CallerError]]:
    found: list[tuple[RawLine, Stub, LineRequest | CallerError]] = []
    for raw in raws:
        stub = _stub(batch.id, raw.number, _custom_id(raw))
        try:
            found.append((raw, stub, request_of(batch.id, batch.endpoint, raw.data)))
        except CallerError as error:
            found.append((raw, stub, error))
    return found


def _custom_id(raw: RawLine) -> bytes:
    return orjson.dumps(orjson.loads(raw.data)["custom_id"])


def _refused(raw: RawLine, end: LineEnd) -> Line:
    size_bytes = raw.next_byte - raw.first_byte
    return Line(raw.number, _custom_id(raw), raw.first_byte, size_bytes, "", end.state, end.record)


def _told(found: Sequence[JobEnd]) -> list[tuple[Line, Ending]]:
    return [
        (end.line, Ending(Job.decode(end.spec), end.created_ms, Outcome.decode(end.outcome), end.result))
        for end in found
    ]


def _ending(record: Record) -> Ending | None:
    if record.outcome is None:
        return None
    return Ending(record.job, record.created_ms, record.outcome, record.result or b"")


def _ends(batch_id: str, ended: Iterable[tuple[Line, Ending]], why: Failure | None) -> list[LineEnd]:
    return [_ended(_stub(batch_id, line.number, line.custom_id), ending, why) for line, ending in ended]


def _ended(stub: Stub, ending: Ending, why: Failure | None) -> LineEnd:
    try:
        return ended_line(stub, ending, why)
    except UNSHAPEABLE:
        # Tried again it would be the same, and the lines beside it would never end either.
        log.exception("batch.answer_untold", job_id=ending.job.id)
        return refused_line(stub, UNTOLD, ending.job)


def _counted(batch: Batch, ends: Sequence[LineEnd], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The batch's counts when these lines have ended."""
    states = [end.state for end in ends]
    values: dict[str, Any] = {
        "completed": batch.completed + states.count(GOOD),
        "failed": batch.failed + states.count(BAD),
    }
    for outcome in outcomes:
        for name, tokens in used_tokens(outcome).items():
            values[name] = values.get(name, getattr(batch, name)) + tokens
    return values


def _groups(lines: Sequence[Line], most: int) -> Iterable[list[Line]]:
    """These lines in groups of at most so many, small enough to be held in memory together."""
    group: list[Line] = []
    for line in lines:
        size_bytes = sum(one.size_bytes for one in group) + line.size_bytes
        if group and (len(group) >= most or size_bytes > GROUP_BYTES):
            yield group
            group = []
        group.append(line)
    if group:
        yield group
