"""Which version a database's tables are, and how they come to ours: one process at a time, the others find it done."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, inspect, text

log = structlog.get_logger(__name__)

_LOCK: Final = 0x4865_6164_7261_6365  # "Headrace" in ASCII: the key of PostgreSQL's advisory lock
_REVISIONS: Final = tuple(sorted(path.stem[1:5] for path in Path(__file__).parent.glob("migrations/versions/m*.py")))
"""Ours, from the oldest on: a migration's file is named by its revision."""


def newest() -> str:
    """The revision that this version of Headrace was written for."""
    return _REVISIONS[-1]


def current(connection: Connection) -> str | None:
    """The database's revision; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def suffices(revision: str) -> bool:
    """Whether tables at this revision are what this version needs: at ours, or at a newer one's, which only adds."""
    return revision not in _REVISIONS[:-1]


def upgrade(connection: Connection) -> str:
    """The database's revision once it is at least ours. To be called in a transaction that may write.

    A database that a newer Headrace migrated stays as it is: migrations only add, so both versions work with it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = current(connection)
    if found is None or not suffices(found):
        # Only here, since one process of many ever comes here: Alembic is 12 MB and a third of a second to import.
        import_module("common.ledger.migrating").migrate(connection)
        log.info("ledger.migrated", before=found, now=newest())
        found = newest()
    return found
