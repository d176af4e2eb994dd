"""The ledger's tables, as the newest migration leaves them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, false, text

METADATA: Final = MetaData()

JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("id", String(128), primary_key=True),
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
)
"""Journaled jobs: open ones, and ended ones for as long as results are kept."""

_OPEN: Final = text("status IS NULL")
_ENDED: Final = text("status IS NOT NULL")
_KEYED: Final = text("idempotency <> ''")
Index("jobs_open", JOBS.c.pool, JOBS.c.id, postgresql_where=_OPEN, sqlite_where=_OPEN)
Index("jobs_ended", JOBS.c.finished_ms, postgresql_where=_ENDED, sqlite_where=_ENDED)
Index("jobs_keyed", JOBS.c.tenant, JOBS.c.idempotency, postgresql_where=_KEYED, sqlite_where=_KEYED)
Index("jobs_of_tenant", JOBS.c.tenant, JOBS.c.created_ms, JOBS.c.id)

IDENTITY: Final = Table("identity", METADATA, Column("id", String(32), primary_key=True))
"""One row: which ledger this is, so that processes can tell whether they share one."""
