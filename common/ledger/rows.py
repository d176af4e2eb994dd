"""What goes into the ledger and what comes out: plain values, so that whoever handles them needs no SQL.

Times are milliseconds since the epoch by Redis's clock. `spec`, `outcome`, `result` are the queue's own JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.contracts import State


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job about to be accepted: everything needed to submit it again.

    `idempotency`, `fingerprint`, `batch` as in Job.
    """

    id: str
    pool: str
    tenant: str
    spec: bytes
    created_ms: int
    deadline_ms: int
    idempotency: str = ""
    fingerprint: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended. `accepted` is the job itself, where it is known, for a ledger that never heard of it."""

    id: str
    status: State
    outcome: bytes
    finished_ms: int
    result: bytes = b""
    fence: int = 0
    attempt: int = 0
    failures: int = 0
    started_ms: int | None = None
    accepted: Accepted | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as the ledger knows it; `end` is None while it is open."""

    accepted: Accepted
    cancel_asked: bool
    end: End | None
