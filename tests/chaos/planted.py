"""Faults to plant in a copy of the code: each breaks one promise, and names the scene in which it must be found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.support.tree import Change

APPEND: Final = "common/lua/append.lua"
CLAIM: Final = "common/lua/claim.lua"
SETTLE: Final = "common/lua/settle.lua"
WORKING: Final = "common/queue/working.py"
ENDING: Final = "common/queue/ending.py"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault: its name, the scene (or the file of tests) that shows it, words that must be said, and its changes."""

    name: str
    scene: str
    says: str
    changes: tuple[Change, ...]


FAULTS: Final = (
    Planted(
        "append asks nobody's leave",
        "zombie",
        "was over at",
        (Change(APPEND, "field[1] == worker and field[2] == fence and field[4] == 'running'", "field[1]"),),
    ),
    Planted(
        "settle asks nobody's leave",
        "zombie",
        "was over at",
        (
            Change(SETTLE, "if field[3] ~= fence then return {1, 0} end", ""),
            Change(SETTLE, "if worker ~= '' and (state ~= 'running' or field[2] ~= worker) then return {1, 0} end", ""),
        ),
    ),
    Planted(
        "tokens are added wherever the stream ends",
        "quiet",
        " follows ",
        (Change(APPEND, "'NOMKSTREAM', position, 'c', events", "'NOMKSTREAM', '*', 'c', events"),),
    ),
    Planted(
        "leases are not renewed in time",
        "quiet",
        "nothing had happened to it",
        (Change("workers/lease.py", "self._lease_s / BEATS_A_LEASE", "self._lease_s * BEATS_A_LEASE"),),
    ),
    Planted(
        "the reaper takes from the living",
        "quiet",
        "nothing had happened to it",
        (Change("common/lua/reap.lua", "workers, '-inf', now_ms)", "workers, '-inf', '+inf')"),),
    ),
    Planted(
        "a claim does not say whose the job is",
        "quiet",
        "still running",
        (Change(CLAIM, "'worker', worker, ", ""),),
    ),
    Planted(
        "a claim does not note what its worker holds",
        "killed",
        "still running",
        (Change(CLAIM, "redis.call('HSET', held, id, fence_text)", ""),),
    ),
    Planted(
        "a claim takes what is past its deadline",
        "late",
        "past its deadline",
        (Change(CLAIM, "if field[1] ~= 'queued' or deadline_ms <= now_ms then", "if field[1] ~= 'queued' then"),),
    ),
    Planted(
        "the stream's end comes after the state, in a step of its own",
        "killed",
        "(o) was written by an attempt that was over",  # of every job; `has 0 ends` only where a kill came between
        (
            Change(SETTLE, "redis.pcall('XADD', stream, fence .. '-' .. outcome_seq, 'o', outcome)", "'0-0'"),
            Change(
                ENDING,
                "        return Settled(code), busy_ms\n",
                "        await asyncio.sleep(0.25)\n"
                "        if code == 0:\n"
                '            place = f"{fence}-{end.outcome_seq or 1}"\n'
                "            name = keys.stream(pool, job_id)\n"
                '            await self._store.command("XADD", name, place, "o", end.outcome.encode())\n'
                "        return Settled(code), busy_ms\n",
            ),
            Change(
                ENDING, "from __future__ import annotations\n", "from __future__ import annotations\nimport asyncio\n"
            ),
        ),
    ),
    Planted(
        "an end is counted twice",
        "quiet",
        "ends were counted",
        (Change(SETTLE, "redis.call('HINCRBY', stats, status, 1)", "redis.call('HINCRBY', stats, status, 2)"),),
    ),
    Planted(
        "a stream is cut short while it is read",
        "quiet",
        " follows ",
        (Change(APPEND, "'NOMKSTREAM', position,", "'NOMKSTREAM', 'MAXLEN', 4, position,"),),
    ),
    Planted(
        "what was put back never stands in its lane again",
        "killed",
        "still queued",
        (
            Change(
                "common/lua/release.lua", "redis.call('ZADD', prefix .. 'lane:' .. field[9], field[10], field[11])", ""
            ),
        ),
    ),
    Planted(
        "readers are not told that an answer begins anew",
        "killed",
        "no reset came between",
        (Change("gateway/relay.py", "return self._shape.anew(self._seen)", 'return b""'),),
    ),
    Planted(
        "a reader that resumes gets its last event again",
        "quiet",
        " came after ",
        (
            Change(
                "gateway/routes/jobs.py", "        return seen\n", "        return Position(seen.fence, seen.seq - 1)\n"
            ),
        ),
    ),
    Planted(
        "a reader that resumes misses an event",
        "quiet",
        " came after ",
        (
            Change(
                "gateway/routes/jobs.py", "        return seen\n", "        return Position(seen.fence, seen.seq + 1)\n"
            ),
        ),
    ),
    Planted(
        "a gap in what a gateway was sent is not filled",
        "gap",
        " came after ",
        (Change("gateway/readers.py", "if follows(entry, self._tail):", "if True:"),),
    ),
    Planted(
        "the order to cancel is not sent, nor looked for",
        "cancelled",
        "still running",
        (
            Change("common/lua/cancel.lua", "redis.call('RPUSH', control,", "redis.call('EXISTS', control,"),
            Change(
                "workers/engine.py", "for job_id in await self._queue.cancelling(pool, job_ids):", "for job_id in ():"
            ),
        ),
    ),
    Planted(
        "delayed jobs are forgotten when their time comes",
        "quiet",
        "still queued",
        (
            Change(
                "common/lua/promote.lua",
                "redis.call('ZADD', prefix .. 'lane:' ..",
                "redis.call('EXISTS', prefix .. 'lane:' ..",
            ),
        ),
    ),
    Planted(
        "one tenant's key finds another's job",
        "keyed",
        "that is not its own",
        (Change("common/keys.py", ":idem:{tenant}:{digest}", ":idem:all:{digest}"),),
    ),
    Planted(
        "a key is not remembered",
        "keyed",
        "made ",
        (Change("common/lua/submit.lua", "redis.call('SET', idem, id", "redis.call('EXISTS', idem, id"),),
    ),
    Planted(
        "two probe one backend",
        "tests/store/test_breaker.py",
        "failed",
        (Change("common/lua/breaker.lua", " and not held then", " then"),),
    ),
    Planted(
        "a dead prober holds the breaker for ever",
        "tests/store/test_breaker.py",
        "failed",
        (Change("common/lua/breaker.lua", "probe_until_ms > now_ms", "probe_until_ms > 0"),),
    ),
)
