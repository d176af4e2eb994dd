"""The one module that knows Alembic: brings tables to this version, and compares them with what the code expects."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from common.ledger.tables import METADATA

# It tells of each look at the version; what matters is said by `schema`.
logging.getLogger("alembic").setLevel(logging.WARNING)


def migrate(connection: Connection) -> None:
    """Runs every migration that the database lacks, in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def differences(connection: Connection) -> list[object]:
    """What the database's tables have otherwise than the code expects."""
    return list(compare_metadata(MigrationContext.configure(connection), METADATA))
