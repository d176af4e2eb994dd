"""A witness beside the callers: looks at the store's jobs again and again, and keeps each one's record and stream."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import orjson
from hiredis import ReplyError

from common import keys
from tests.chaos.record import Recorder
from tests.support.history import ENDED
from tests.support.redis_server import RedisServer

LOOK_EVERY_S: Final = 0.3
MOST_AT_ONCE: Final = 500
FIELDS: Final = ("state", "fence", "attempt", "deadline_ms", "finished_ms", "spec")


class Witness:
    """Notes when an attempt was over and how far it had come, each end it sees, and every job as it was kept.

    Jobs are kept `keep_after_s` after their end was seen, before a short retention forgets them, or by `keep_all`.
    """

    def __init__(self, redis: RedisServer, recorder: Recorder, pool: str, *, keep_after_s: float = 3_600) -> None:
        self._redis = redis
        self._recorder = recorder
        self._pool = pool
        self._keep_after_s = keep_after_s
        self._over: dict[str, int] = {}
        self._ended_s: dict[str, float] = {}
        self._kept: set[str] = set()
        self._looking = True

    async def run(self) -> None:
        """Looks until `stop`. A store that is away is asked again later."""
        while self._looking:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """Lets `run` return."""
        self._looking = False

    def look(self) -> None:
        """One look at every job whose end was not seen yet."""
        try:
            live = [job for job in self._jobs() if job not in self._ended_s and job not in self._kept]
            for part in _parts(live):
                self._look_at(part)
            due_s = time.monotonic() - self._keep_after_s
            self._keep([job for job, ended_s in self._ended_s.items() if ended_s < due_s])
        except (OSError, ReplyError):
            return  # it is being killed, frozen or loaded

    def keep_all(self) -> None:
        """Keeps every job that the store holds and that was not kept yet, and the pool's counters."""
        self._keep([job for job in self._jobs() if job not in self._kept])
        flat: list[bytes] = self._redis.command("HGETALL", keys.stats(self._pool))
        stats = {name.decode(): int(float(value)) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        self._recorder.note("stats", stats=stats)

    def _jobs(self) -> list[str]:
        names: list[bytes] = self._redis.command("KEYS", keys.job(self._pool, "*"))
        return [name.decode().rpartition(":")[2] for name in names]

    def _look_at(self, jobs: Sequence[str]) -> None:
        asked = [
            words
            for job in jobs
            for words in (
                ("HMGET", keys.job(self._pool, job), "state", "fence"),
                ("XREVRANGE", keys.stream(self._pool, job), "+", "-", "COUNT", 1),
            )
        ]
        replies = self._redis.commands(asked)
        for job, (state, fence), top in zip(jobs, replies[::2], replies[1::2], strict=True):
            if state is not None:
                self._note(job, state.decode(), int(fence), top)

    def _note(self, job: str, state: str, fence: int, top: list[Any]) -> None:
        last = top[0][0].decode() if top else ""
        if state != "running" and last.startswith(f"{fence}-") and self._over.get(job) != fence:
            self._over[job] = fence
            self._recorder.note("over", job=job, fence=fence, last=last)
        if state in ENDED:
            self._ended_s[job] = time.monotonic()
            self._recorder.note("state", job=job, state=state)

    def _keep(self, jobs: Sequence[str]) -> None:
        for part in _parts(jobs):
            asked = [
                words
                for job in part
                for words in (
                    ("HMGET", keys.job(self._pool, job), *FIELDS),
                    ("XRANGE", keys.stream(self._pool, job), "-", "+"),
                )
            ]
            replies = self._redis.commands(asked, limit_s=20)
            for job, fields, entries in zip(part, replies[::2], replies[1::2], strict=True):
                self._keep_one(job, fields, entries)

    def _keep_one(self, job: str, fields: list[bytes | None], entries: list[Any]) -> None:
        state, _, attempt, deadline_ms, finished_ms, spec = ((raw or b"0").decode() for raw in fields)
        self._kept.add(job)
        self._ended_s.pop(job, None)
        if spec == "0":
            # No job: it keeps the place of a submission that was taken back.
            self._recorder.note("withdrawn", job=job)
            return
        self._recorder.note(
            "kept",
            job=job,
            state=state,
            attempt=int(attempt),
            deadline_ms=int(deadline_ms),
            finished_ms=int(finished_ms),
            entries=[[raw.decode(), pair[0].decode(), _what(pair[0], pair[1])] for raw, pair in entries],
        )


def ends_in(ledger: Path) -> dict[str, str | None]:
    """How each job ended by an SQLite ledger; None where it has not."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, status FROM jobs"))


def _what(kind: bytes, body: bytes) -> Any:
    """Of events their number and words, of an outcome its status and failure, of a start its attempt."""
    if kind == b"o":
        outcome = orjson.loads(body)
        return [outcome["status"], (outcome["failure"] or {}).get("code")]
    if kind != b"c":
        return body.decode()
    events = [orjson.loads(line) for line in body.split(b"\n")]
    return [len(events), list(_words(events))]


def _words(events: Iterable[Any]) -> Iterator[str]:
    for event in events:
        for choice in event["choices"]:
            yield from (choice["delta"].get("content") or "").split()


def _parts(jobs: Sequence[str]) -> Iterator[Sequence[str]]:
    return (jobs[start : start + MOST_AT_ONCE] for start in range(0, len(jobs), MOST_AT_ONCE))
