"""Orders that reach a worker through its control list, as the scripts write them: `<verb> <job or -> <fence>`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import structlog

log = structlog.get_logger(__name__)


class Verb(StrEnum):
    """What a worker can be told."""

    CANCEL = "cancel"
    EXPIRE = "expire"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Order:
    """One order; `job_id` and `fence` say which attempt is meant, where one is."""

    verb: Verb
    job_id: str
    fence: int


def read_order(raw: bytes) -> Order | None:
    """The order in an element of the list; None for one that this version doesn't know."""
    try:
        verb, job_id, fence = raw.decode().split(" ")
        return Order(Verb(verb), job_id, int(fence))
    except ValueError:
        log.warning("worker.order_unknown", order=raw[:80].decode(errors="replace"))
        return None
