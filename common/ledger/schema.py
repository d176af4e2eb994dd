"""Brings a database's tables to this version: one process at a time, whoever comes first, the others find it done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from common.ledger.tables import METADATA

log = structlog.get_logger(__name__)
# It tells of each look at the version; what matters is said here.
logging.getLogger("alembic").setLevel(logging.WARNING)

_LOCK: Final = 0x4865_6164_7261_6365  # "Headrace" in ASCII: the key of PostgreSQL's advisory lock


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest() -> str:
    """The revision that this version of Headrace was written for."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(connection: Connection) -> str | None:
    """The database's revision; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def differences(connection: Connection) -> list[object]:
    """What the database's tables have otherwise than the code expects."""
    return list(compare_metadata(MigrationContext.configure(connection), METADATA))


def suffices(revision: str) -> bool:
    """Whether tables at this revision are what this version needs: at ours, or at a newer one's, which only adds."""
    ours = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    return revision not in ours - {newest()}


def upgrade(connection: Connection) -> str:
    """The database's revision once it is at least ours. To be called in a transaction that may write.

    A database that a newer Headrace migrated stays as it is: migrations only add, so both versions work with it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = current(connection)
    if found is None or not suffices(found):
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        log.info("ledger.migrated", before=found, now=newest())
        found = newest()
    return found
