"""Every Redis key's name, its type, and the one module that may write it.

All keys of a pool begin `hr:{<pool>}:` and so share a slot; what a tenant has in all pools begins `hr:{t:<tenant>}:`.
Scripts get these names as KEYS, or derive them from the pool's prefix where ids are not known beforehand
(`job:`, `stream:`, `lane:`, `held:`, `control:`, `inbox:` followed by the id).
"""

from __future__ import annotations

from typing import Final


def pool_prefix(pool: str) -> str:
    """What every key of a pool begins with."""
    return f"hr:{{{pool}}}:"


def job(pool: str, job_id: str) -> str:
    return f"hr:{{{pool}}}:job:{job_id}"  # hash, queue; TTL: deadline + retention


def stream(pool: str, job_id: str) -> str:
    return f"hr:{{{pool}}}:stream:{job_id}"  # stream, stream (claim and settle add its first and last entry); TTL


def lane_name(priority: int, model: str) -> str:
    """A lane's name within its pool: `<class>:<model>`."""
    return f"{priority}:{model}"


def lane(pool: str, name: str) -> str:
    return f"hr:{{{pool}}}:lane:{name}"  # zset, queue; member `<enqueued µs>|<batch key>|<job id>`, score fair tag


def lanes(pool: str) -> str:
    return f"hr:{{{pool}}}:lanes"  # set of the names of lanes that hold something, queue; allow-listed


def fair(pool: str) -> str:
    return f"hr:{{{pool}}}:fair"  # hash, queue; virtual times and class credits; allow-listed


def delayed(pool: str) -> str:
    return f"hr:{{{pool}}}:delayed"  # zset id -> due ms, queue; allow-listed


def deadlines(pool: str) -> str:
    return f"hr:{{{pool}}}:deadlines"  # zset id -> deadline ms of every job not ended, queue; allow-listed


def abandoned(pool: str) -> str:
    return f"hr:{{{pool}}}:abandoned"  # zset id -> ms at which a job without readers is cancelled; allow-listed


def dead(pool: str) -> str:
    return f"hr:{{{pool}}}:dead"  # zset id -> ms of the jobs whose attempts are used up, queue; allow-listed


def bell(pool: str) -> str:
    return f"hr:{{{pool}}}:bell"  # list, queue; one element a wake-up, at most 256; allow-listed


def urgent_bell(pool: str) -> str:
    return f"hr:{{{pool}}}:urgent"  # list, queue; as `bell`, for interactive work alone; allow-listed


def workers(pool: str) -> str:
    return f"hr:{{{pool}}}:workers"  # zset worker id -> lease's end ms (0: being reaped), queue; allow-listed


def worker_info(pool: str, worker: str) -> str:
    return f"hr:{{{pool}}}:worker:{worker}"  # string (JSON), queue; TTL: a few leases


def held(pool: str, worker: str) -> str:
    return f"hr:{{{pool}}}:held:{worker}"  # hash job id -> fence of what this worker runs, queue; empties by itself


def control(pool: str, worker: str) -> str:
    return f"hr:{{{pool}}}:control:{worker}"  # list of orders to this worker (JSON), queue; TTL


def stats(pool: str) -> str:
    return f"hr:{{{pool}}}:stats"  # hash of counters since ever and the measured drain rate, queue; allow-listed


def noting(pool: str) -> str:
    return f"hr:{{{pool}}}:noting"  # string, queue; whoever makes it notes the measured pace; TTL


def inbox(pool: str, gateway: str) -> str:
    return f"hr:{{{pool}}}:inbox:{gateway}"  # stream of frames for one gateway process, stream; TTL


def health(pool: str) -> str:
    return f"hr:{{{pool}}}:health"  # hash backend -> JSON, health; TTL


def probe(pool: str, backend: str) -> str:
    return f"hr:{{{pool}}}:probe:{backend}"  # string, health; whoever makes it probes this backend; TTL


def waiting(pool: str) -> str:
    return f"hr:{{{pool}}}:waiting"  # hash, queue; `j:<tenant>` jobs and `t:<lane>` tokens that wait; allow-listed


def idempotency(pool: str, tenant: str, digest: str) -> str:
    return f"hr:{{{pool}}}:idem:{tenant}:{digest}"  # string `<job id> <fingerprint>`, queue; TTL


def tenant_jobs(pool: str, tenant: str) -> str:
    return f"hr:{{{pool}}}:jobs:{tenant}"  # zset job id -> created µs, queue; TTL


def warm(pool: str) -> str:
    return f"hr:{{{pool}}}:warm"  # hash batch key -> `<worker> <ms>` that served it last, queue; TTL


def capacity(pool: str) -> str:
    return f"hr:{{{pool}}}:capacity"  # hash worker id -> jobs it can hold at once, queue; allow-listed, as `workers`


def worker_bell(pool: str, worker: str) -> str:
    return f"hr:{{{pool}}}:bell:{worker}"  # list, queue; wake-ups for this worker alone; TTL


def ended(pool: str) -> str:
    return f"hr:{{{pool}}}:ended"  # stream of journaled jobs that ended, until the ledger has them, queue; allow-listed


def ledger(pool: str) -> str:
    return f"hr:{{{pool}}}:ledger"  # string: identity of the ledger that keeps this pool's journal, outbox; TTL


def backend_prefix(backend: str) -> str:
    """What every key of a backend begins with: one slot each, whatever pools may call it."""
    return f"hr:{{b:{backend}}}:"


def breaker(backend: str) -> str:
    return f"hr:{{b:{backend}}}:breaker"  # hash: state, failures, times, who probes, breaker; TTL


def backend_slots(backend: str) -> str:
    return f"hr:{{b:{backend}}}:slots"  # hash worker id -> slots granted, wanted, lease's end ms, backends; TTL


def backend_keys(backend: str) -> str:
    return f"hr:{{b:{backend}}}:keys"  # hash API key's digest -> ms until which it is not to be used, backends; TTL


def tenant_idempotency(tenant: str, digest: str) -> str:
    return f"hr:{{t:{tenant}}}:idem:{digest}"  # string: fingerprint of the body that came with it, queue; TTL


ALLOWED_WITHOUT_TTL = frozenset(
    {
        "lanes", "fair", "delayed", "deadlines", "abandoned", "dead", "bell", "urgent", "workers", "stats", "lane",
        "held", "waiting", "capacity", "ended",
    }
)  # fmt: skip
"""The second part of the keys that may stand without a TTL; everything else must have one."""

EVERY_KEY = "hr:{*"
"""What every key of ours matches."""


def kind_of(key: str) -> str:
    """The second part of a key: what it is, whatever pool or tenant it belongs to."""
    return key.partition("}:")[2].partition(":")[0]


INBOX_MOST_ENTRIES: Final = 4096
"""Frames kept in a gateway's inbox; a gateway that lags further behind reads the jobs' streams."""
