"""The ledger's tables, as the newest migration leaves them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.engine import Dialect

METADATA: Final = MetaData()


class Word(TypeDecorator[str]):
    """Text that callers may ask for. NUL, which PostgreSQL refuses even to compare with, becomes U+FFFD."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\0", "\ufffd")


JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("id", Word(128), primary_key=True),
    Column("pool", String(40), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("idempotency", String(128), nullable=False, server_default=""),
    Column("fingerprint", String(128), nullable=False, server_default=""),
    Column("created_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("cancel_asked", Boolean, nullable=False, server_default=false()),
    # From here on: the end. `status` is null while the job is open.
    Column("status", String(16)),
    Column("outcome", LargeBinary),
    Column("result", LargeBinary),
    Column("fence", BigInteger),
    Column("attempt", Integer),
    Column("failures", Integer),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    # The batch that the job is a line of; '' for jobs that stand for themselves, which alone are listed.
    Column("batch", String(64), nullable=False, server_default=""),
)
"""Journaled jobs: open ones, and ended ones for as long as results are kept."""

_OPEN: Final = text("status IS NULL")
_ENDED: Final = text("status IS NOT NULL")
_KEYED: Final = text("idempotency <> ''")
Index("jobs_open", JOBS.c.pool, JOBS.c.id, postgresql_where=_OPEN, sqlite_where=_OPEN)
Index("jobs_ended", JOBS.c.finished_ms, postgresql_where=_ENDED, sqlite_where=_ENDED)
Index("jobs_keyed", JOBS.c.tenant, JOBS.c.idempotency, postgresql_where=_KEYED, sqlite_where=_KEYED)
Index("jobs_of_tenant", JOBS.c.tenant, JOBS.c.created_ms, JOBS.c.id)
LISTED: Final = text("jobs.batch = ''")
_ALONE: Final = text("batch = ''")
Index("jobs_listed", JOBS.c.tenant, JOBS.c.created_ms, JOBS.c.id, postgresql_where=_ALONE, sqlite_where=_ALONE)

IDENTITY: Final = Table("identity", METADATA, Column("id", String(32), primary_key=True))
"""One row: which ledger this is, so that processes can tell whether they share one."""

FILES: Final = Table(
    "files",
    METADATA,
    Column("id", Word(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("filename", Text, nullable=False, server_default=""),
    Column("purpose", Word(32), nullable=False, server_default=""),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("touched_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
)
"""Files: `uploading` until all bytes are there, then `ready`; `deleted` until the bytes are swept."""

_UNREADY: Final = text("state <> 'ready'")
_EXPIRING: Final = text("expires_ms IS NOT NULL")
Index("files_of_tenant", FILES.c.tenant, FILES.c.created_ms, FILES.c.id)
Index("files_unready", FILES.c.touched_ms, postgresql_where=_UNREADY, sqlite_where=_UNREADY)
Index("files_expiring", FILES.c.expires_ms, postgresql_where=_EXPIRING, sqlite_where=_EXPIRING)

FILE_CHUNKS: Final = Table(
    "file_chunks",
    METADATA,
    Column("file_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
"""The files' bytes, all chunks of a file but its last of one size."""

BATCHES: Final = Table(
    "batches",
    METADATA,
    Column("id", Word(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("weight", Float, nullable=False, server_default="1"),
    Column("endpoint", String(64), nullable=False),
    Column("model", Text),
    Column("input_file_id", Word(64), nullable=False),
    Column("metadata", LargeBinary),
    Column("output_life_s", Integer),
    Column("status", String(16), nullable=False),
    Column("errors", LargeBinary),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("in_progress_ms", BigInteger),
    Column("finalizing_ms", BigInteger),
    Column("cancelling_ms", BigInteger),
    # When it ended, in the way that `status` says.
    Column("ended_ms", BigInteger),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    # Up to where the input's lines have been begun: the next one's first byte and its number.
    Column("next_byte", BigInteger, nullable=False, server_default="0"),
    Column("next_line", Integer, nullable=False, server_default="1"),
    # Who works on it, until when, and how many have before: a write with an older fence is refused.
    Column("owner", String(64), nullable=False, server_default=""),
    Column("lease_until_ms", BigInteger, nullable=False, server_default="0"),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("swept", Boolean, nullable=False, server_default=false()),
)
"""Batches, for ever; `swept`: its lines' rows are gone."""

_UNENDED: Final = text("ended_ms IS NULL")
_UNSWEPT: Final = text("swept = false AND ended_ms IS NOT NULL")
Index("batches_of_tenant", BATCHES.c.tenant, BATCHES.c.created_ms, BATCHES.c.id)
Index("batches_unended", BATCHES.c.lease_until_ms, postgresql_where=_UNENDED, sqlite_where=_UNENDED)
Index("batches_unswept", BATCHES.c.ended_ms, postgresql_where=_UNSWEPT, sqlite_where=_UNSWEPT)
Index("batches_of_input", BATCHES.c.input_file_id, postgresql_where=_UNENDED, sqlite_where=_UNENDED)

BATCH_LINES: Final = Table(
    "batch_lines",
    METADATA,
    Column("batch_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    # As JSON, with its quotes: it may hold what a text in SQL may not.
    Column("custom_id", LargeBinary, nullable=False),
    Column("first_byte", BigInteger, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    # '' for a line that was refused before it became a job.
    Column("job_id", String(128), nullable=False, server_default=""),
    Column("state", String(8), nullable=False),
    Column("record", LargeBinary),
)
"""Lines that were begun: `open` until the end of its job is told, then `good`, `bad` or `undone`, with what is said of
it in the output or error file."""

OPEN_LINE: Final = text("batch_lines.state = 'open'")
"""To be used as it stands: with a value bound to it, neither database would see that the index fits."""
_OPEN_LINE: Final = text("state = 'open'")
Index(
    "batch_lines_open",
    BATCH_LINES.c.batch_id,
    BATCH_LINES.c.number,
    postgresql_where=_OPEN_LINE,
    sqlite_where=_OPEN_LINE,
)
Index("batch_lines_of_job", BATCH_LINES.c.job_id, postgresql_where=_OPEN_LINE, sqlite_where=_OPEN_LINE)
