"""The values that cross the house: a Job goes in, Chunks come out, one Outcome ends it.

None does I/O. Times are milliseconds since the epoch by Redis's clock unless the name says otherwise.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from enum import IntEnum, StrEnum
from functools import cache
from typing import Any, Final, TypeVar

import orjson

JsonObject = dict[str, Any]
UNTITLED: Final = "document"
"""What the gateway calls a file that came without a name, since some servers want one."""

JOB_ID_PREFIX: Final = "job"


class Priority(IntEnum):
    """A job's class; the number is its lane's, and a smaller one goes first."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class State(StrEnum):
    """Where a job stands; `common/README.md` has the arrows."""

    DELAYED = "delayed"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})


class OnDisconnect(StrEnum):
    """What happens to a job when its last reader has gone."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class OnInterrupt(StrEnum):
    """What happens to a job whose attempt broke off after readers may have seen tokens of it."""

    FAIL = "fail"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Job:
    """One generation asked for: everything that a worker needs and that never changes.

    `body` is the request in OpenAI's shape for `endpoint`. `stream` tells whether the upstream is to be asked for
    tokens as they come, `include_usage` whether the stream's readers get OpenAI's usage chunk. `deadline_in_ms` and
    `delay_ms` count from acceptance. `cost_tokens` is an estimate (prompt and answer) in which fair share and the
    expected wait are counted; `prompt_tokens` is its part that the prompt has, used where nobody counts better.
    `weight` is the tenant's in the fair share. `idempotency` is the digest of the caller's key, `fingerprint` that of
    what came with it. `journal`: the ledger has the job too. `replay_of`: the dead letter that this one is made of.
    `joint`: jobs of this one's batch key can share one call upstream. `answers`: how many it asks for, where their
    length tells how long the model's answers are; 0 where it does not, as under a limit that would cut most of them.
    `dialect`: what the request came in, '' for the endpoint's own, and `asked` what its answer repeats of the request.
    `choice`: the name that was asked for and why `model` was taken, where that is another.
    `batch`: the batch that it is a line of; such jobs are found by their ids, and no list of jobs shows them.
    """

    id: str
    pool: str
    tenant: str
    endpoint: str
    model: str
    body: JsonObject
    priority: Priority = Priority.INTERACTIVE
    stream: bool = False
    include_usage: bool = False
    batch_key: str = ""
    deadline_in_ms: int = 600_000
    delay_ms: int = 0
    max_attempts: int = 3
    cost_tokens: int = 1
    prompt_tokens: int = 0
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    on_interrupt: OnInterrupt = OnInterrupt.FAIL
    metadata: JsonObject = field(default_factory=dict[str, Any])
    request_id: str = ""
    weight: float = 1.0
    idempotency: str = ""
    fingerprint: str = ""
    journal: bool = False
    replay_of: str = ""
    joint: bool = False
    answers: int = 0
    dialect: str = ""
    asked: JsonObject = field(default_factory=dict[str, Any])
    choice: JsonObject = field(default_factory=dict[str, Any])
    batch: str = ""

    def encode(self) -> bytes:
        """The job as JSON bytes, as it is stored."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, raw: bytes) -> Job:
        """The job that `encode` wrote. Raises ValueError, KeyError or TypeError on anything else.

        Unknown fields are left out: in a rolling upgrade an old worker meets the jobs of a newer gateway.
        """
        fields = orjson.loads(raw)
        fields["priority"] = Priority(fields["priority"])
        fields["on_disconnect"] = OnDisconnect(fields["on_disconnect"])
        fields["on_interrupt"] = OnInterrupt(fields["on_interrupt"])
        return made(cls, fields)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted, in OpenAI's words; `details` holds the `*_tokens_details` objects as they came."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    details: JsonObject = field(default_factory=dict[str, Any])

    def to_openai(self) -> JsonObject:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            **self.details,
        }


@dataclass(slots=True)
class Chunk:
    """A piece of an answer: OpenAI's streamed `choices`, and usage where the upstream told it.

    Not frozen, only because a frozen dataclass costs three times as much to make and one is made for each token;
    nobody changes one. `extra` holds other top-level keys worth keeping (`system_fingerprint`, `service_tier`).
    `counted`: of OpenAI's usage what is known so far, where that is not all: its other half, or the rest of the answer,
    may never be told.
    """

    choices: list[JsonObject]
    usage: Usage | None = None
    extra: JsonObject | None = None
    counted: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended badly: a stable code, a sentence for people, and the field at fault where there is one.

    `upstream_code`: what a server of OpenAI's dialect that refused the request as it is calls the reason.
    """

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    upstream_code: str | None = None


@dataclass(frozen=True, slots=True)
class FailedTarget:
    """A backend and its model that a job's last attempt got no answer from, and the error's code."""

    backend: str
    model: str
    code: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `timings_ms`: queued, first_token (both from acceptance), total.

    `model`: the public model that answered, where it was another than the job's; `upstream_model`: that model's name at
    the `backend`. `failed_targets`: those that its last attempt asked, or could not ask, in vain.
    """

    status: State
    finish_reason: str | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    timings_ms: dict[str, int] = field(default_factory=dict[str, int])
    backend: str = ""
    model: str = ""
    upstream_model: str = ""
    failed_targets: list[FailedTarget] = field(default_factory=list[FailedTarget])

    def encode(self) -> bytes:
        """The outcome as JSON bytes, as the stream's last entry carries it."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, raw: bytes) -> Outcome:
        """The outcome that `encode` wrote; unknown fields are left out."""
        fields = orjson.loads(raw)
        fields["status"] = State(fields["status"])
        if fields["usage"] is not None:
            fields["usage"] = made(Usage, fields["usage"])
        if fields["failure"] is not None:
            fields["failure"] = made(Failure, fields["failure"])
        if fields.get("failed_targets"):
            fields["failed_targets"] = [made(FailedTarget, one) for one in fields["failed_targets"]]
        return made(cls, fields)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a job's stream: the attempt's fence, then the event's number in it. Its text is the SSE `id`."""

    fence: int
    seq: int

    def __str__(self) -> str:
        return f"{self.fence}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str` wrote. Raises ValueError on anything but two bounded numbers."""
        fence, dash, seq = text.partition("-")
        if not dash or not _is_number(fence, 16) or not _is_number(seq, 10):
            raise ValueError(f"not a stream position: {text[:40]!r}")
        return cls(int(fence), int(seq))


Made = TypeVar("Made", "Job", "Outcome", "Usage", "Failure", "FailedTarget")


def made(of: type[Made], fields: JsonObject) -> Made:
    """The value with these fields. What a newer version added is left out."""
    names = _field_names(of)
    # As this version wrote them, in their order: two fifths of what it costs to find each by its name.
    if tuple(fields) == names:
        return of(*fields.values())
    return of(**{name: value for name, value in fields.items() if name in names})


@cache
def _field_names(of: type[Any]) -> tuple[str, ...]:
    return tuple(row.name for row in dataclass_fields(of))


def _is_number(text: str, most_digits: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= most_digits


def new_job_id(pool: str) -> str:
    """A fresh 128-bit job id that names its pool: `job_<pool>_<32 hex digits>`."""
    return f"{JOB_ID_PREFIX}_{pool}_{secrets.token_hex(16)}"


def pool_of(job_id: str) -> str | None:
    """The pool a job id names, or None where the text is no job id of ours."""
    prefix, _, rest = job_id.partition("_")
    pool, _, digits = rest.rpartition("_")
    if prefix != JOB_ID_PREFIX or not is_pool_name(pool) or len(digits) != 32 or not set(digits) <= _HEX_DIGITS:
        return None
    return pool


_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_POOL_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def is_pool_name(name: str) -> bool:
    """Whether this can name a pool: 1 to 40 of a-z, 0-9 and '-', so that it is safe in keys and in job ids."""
    return 0 < len(name) <= 40 and set(name) <= _POOL_CHARACTERS
