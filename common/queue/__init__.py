"""The queue: jobs, lanes, leases. Typed functions in front of the scripts; the only writer of their keys.

Each state change is one script of `common/lua`. What is safe to send again says so.
"""

from __future__ import annotations

from common.queue.dead import Dead
from common.queue.side import batch_digest, digest
from common.queue.submitting import Submitting
from common.queue.timing import Timing, lane_of_fair_field
from common.queue.words import (
    Admitted,
    AttemptError,
    Cancelling,
    Cap,
    Claim,
    Claims,
    LaneDepth,
    Place,
    PutBack,
    Record,
    Released,
    Retention,
    Settled,
    Settlement,
    Submitted,
    WorkerRow,
)
from common.queue.working import AGED_SHARE, BATCH_WINDOW, KEPT_AFTER_MS, NUDGE, SLACK_MS, UNREADABLE, Working


class Queue(Submitting, Working, Timing, Dead):
    """Jobs and lanes in Redis, all three sides. Every method may raise StoreUnavailable or StoreFull."""


__all__ = [
    "AGED_SHARE",
    "BATCH_WINDOW",
    "KEPT_AFTER_MS",
    "NUDGE",
    "SLACK_MS",
    "UNREADABLE",
    "Admitted",
    "AttemptError",
    "Cancelling",
    "Cap",
    "Claim",
    "Claims",
    "LaneDepth",
    "Place",
    "PutBack",
    "Queue",
    "Record",
    "Released",
    "Retention",
    "Settled",
    "Settlement",
    "Submitted",
    "WorkerRow",
    "batch_digest",
    "digest",
    "lane_of_fair_field",
]
