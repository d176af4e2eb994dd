"""What a scheduler tells of an attempt that it ends in its worker's place: timings, estimated usage, the error."""

from __future__ import annotations

from dataclasses import replace

from common.contracts import Usage
from common.queue import AttemptError, Queue, Settlement


async def with_what_was_produced(queue: Queue, pool: str, job_id: str, fence: int, end: Settlement) -> Settlement:
    """The end with the lost attempt's timings, and its usage estimated: an event is about a token."""
    try:
        record = await queue.get(job_id)
    except (ValueError, TypeError, KeyError):
        return end  # a record that nobody can read must end all the same
    if record is None or record.started_ms is None:
        return end
    total_ms = await queue.now_ms() - record.created_ms
    timings = {"queued": record.started_ms - record.created_ms, "total": total_ms}
    events = await queue.produced(pool, job_id, fence)
    usage = Usage(record.job.prompt_tokens, events, {"estimated": True}) if events else None
    return replace(end, outcome=replace(end.outcome, timings_ms=timings, usage=usage))


async def attempt_error(queue: Queue, pool: str, job_id: str, worker: str, *, code: str, message: str) -> AttemptError:
    """The error of the job's present attempt, whose worker will not tell it."""
    return AttemptError(await queue.attempt(pool, job_id), code, message, worker=worker, at_ms=await queue.now_ms())
