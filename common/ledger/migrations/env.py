"""What Alembic runs: the migrations, over the connection it was handed, inside that connection's transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from common.ledger.tables import METADATA

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=False)
context.run_migrations()
