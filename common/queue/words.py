"""What the queue answers in: codes of the scripts, claims, records, rows for those who look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import orjson

from common.config import Settings
from common.contracts import Job, JsonObject, Outcome, Priority, State

RECORD_MARGIN_MS: Final = 3_600_000


class Submitted(IntEnum):
    """What `submit.lua` answered."""

    ACCEPTED = 0
    DUPLICATE = 1
    FULL = 2
    TENANT_FULL = 3
    TOO_LATE = 4
    OTHER_BODY = 5


class Settled(IntEnum):
    """What `settle.lua` answered."""

    ENDED = 0
    REFUSED = 1
    UNKNOWN = 2
    ALREADY = 3

    @property
    def done(self) -> bool:
        """Whether the job has this end now."""
        return self in (Settled.ENDED, Settled.ALREADY)


class Released(IntEnum):
    """What `release.lua` answered; from INTERRUPTED on, the caller must settle the job."""

    PUT_BACK = 0
    REFUSED = 1
    INTERRUPTED = 2
    ATTEMPTS_USED_UP = 3
    CANCELLED = 4
    EXPIRED = 5


class Cancelling(IntEnum):
    """What `cancel.lua` answered."""

    ENDED = 0
    WAITING = 1
    TOLD = 2
    UNKNOWN = 3
    READ = 4


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to a submission.

    `job_id` is another's where an idempotency key was known. `ahead` counts the jobs that go first in the lane (for
    TENANT_FULL: that the tenant has waiting), `wait_ms` is how long that takes at the pace measured, None where that is
    unknown; `retry_ms` tells, for TOO_LATE, by how much the job would miss its deadline. `waiting` of at most
    `most_waiting` jobs of the tenant wait now in this pool, this one among them where it was taken; None where nobody
    looked.
    """

    code: Submitted
    job_id: str
    created_ms: int
    ahead: int
    wait_ms: int | None = None
    retry_ms: int | None = None
    waiting: int | None = None
    most_waiting: int = 0


@dataclass(frozen=True, slots=True)
class Cap:
    """Lanes that together may be given only so many jobs in a claim, because they share what serves them."""

    most: int
    lanes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands: how many go before it in its lane, and how long that takes; None where it can't be told."""

    state: State
    position: int | None
    wait_ms: int | None


@dataclass(frozen=True, slots=True)
class AttemptError:
    """Why an attempt failed: which one, where, by whom, and when by Redis's clock."""

    attempt: int
    code: str
    message: str
    backend: str = ""
    worker: str = ""
    at_ms: int = 0

    def encode(self) -> bytes:
        """One line of JSON."""
        return orjson.dumps(self)


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker owns until it settles or its lease lapses. Times are Redis's."""

    job: Job
    fence: int
    attempt: int
    failures: int
    created_ms: int
    deadline_ms: int
    claimed_ms: int


class Claims(list[Claim]):
    """What a claim got. `kept`: the slots that it left free are for interactive work alone, for now."""

    def __init__(self, claims: Iterable[Claim] = (), *, kept: bool = False) -> None:
        super().__init__(claims)
        self.kept = kept


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a job ends: last tokens, outcome and result, as `settle` writes them; `error` where its attempt failed.

    `answer_tokens`: how long its answer was, where that tells how long the lane's answers are; else 0.
    """

    outcome: Outcome
    events: bytes = b""
    events_seq: int = 0
    outcome_seq: int | None = None
    result: bytes = b""
    share_result: bool = False
    dead: bool = False
    error: AttemptError | None = None
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PutBack:
    """How a running job goes back: `failed` counts against its attempts, `preempted`: it gave way to an urgent one."""

    failed: bool
    delay_ms: int = 0
    error: AttemptError | None = None
    preempted: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A job as it stands. `position` counts the jobs before it in its lane; None when it does not wait there.

    `deferred`: the ledger has another end of it, which is the one that counts.
    """

    job: Job
    state: State
    fence: int
    attempt: int
    failures: int
    created_ms: int
    deadline_ms: int
    started_ms: int | None
    finished_ms: int | None
    outcome: Outcome | None
    result: bytes | None
    position: int | None
    errors: tuple[AttemptError, ...] = ()
    preemptions: int = 0
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A registered worker: its lease's end, what it last told of itself, whether it drains, the jobs it holds."""

    id: str
    pool: str
    lease_expires_ms: int
    info: JsonObject
    draining: bool = False
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """How much waits in a lane, since when the first, and what it is likely to cost."""

    pool: str
    priority: Priority
    model: str
    depth: int
    oldest_ms: int | None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended work stays, in seconds."""

    result_s: int = 86_400
    stream_s: int = 3_600
    idempotency_s: int = 86_400

    @property
    def record_ms(self) -> int:
        """How long the record of a job that has not ended outlives its deadline, in ms."""
        return max(self.result_s, self.idempotency_s) * 1000 + RECORD_MARGIN_MS

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        """As it is configured."""
        return cls(settings.result_retention_s, settings.stream_retention_s, settings.idempotency_retention_s)
