"""New ledgers over SQLite for tests that are about what stands in one: a copy takes a tenth of what migrations take."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import create_engine

from common.ledger import schema


def blank_ledger(place: Path) -> str:
    """The URL of a ledger in this folder that has its tables, an identity of its own, and no rows."""
    file = place / "ledger.db"
    if not file.exists():
        file.write_bytes(_migrated())
        with closing(sqlite3.connect(file)) as connection, connection:
            assert connection.execute("UPDATE identity SET id = ?", (secrets.token_hex(16),)).rowcount == 1
    return f"sqlite+aiosqlite:///{file}"


@cache
def _migrated() -> bytes:
    """The bytes of a ledger once every migration has run."""
    with TemporaryDirectory() as place:
        file = Path(place, "ledger.db")
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            schema.upgrade(connection)
        engine.dispose()
        return file.read_bytes()
