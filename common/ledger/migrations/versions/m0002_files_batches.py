"""Files, their bytes, batches and their lines; and of which batch a job is a line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the four tables, and adds a column to jobs that rows of the version before have as ''."""
    op.add_column("jobs", sa.Column("batch", sa.String(64), nullable=False, server_default=""))
    _index("jobs_listed", "jobs", ["tenant", "created_ms", "id"], "batch = ''")
    _files()
    _batches()
    _lines()


def _index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    some = sa.text(where) if where else None
    op.create_index(name, table, columns, postgresql_where=some, sqlite_where=some)


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("filename", sa.Text, nullable=False, server_default=""),
        sa.Column("purpose", sa.String(32), nullable=False, server_default=""),
        sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("touched_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
    )
    _index("files_of_tenant", "files", ["tenant", "created_ms", "id"])
    _index("files_unready", "files", ["touched_ms"], "state <> 'ready'")
    _index("files_expiring", "files", ["expires_ms"], "expires_ms IS NOT NULL")
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def _batches() -> None:
    counts = ("total", "completed", "failed")
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("weight", sa.Float, nullable=False, server_default="1"),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("metadata", sa.LargeBinary),
        sa.Column("output_life_s", sa.Integer),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("errors", sa.LargeBinary),
        sa.Column("output_file_id", sa.String(64)),
        sa.Column("error_file_id", sa.String(64)),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("in_progress_ms", sa.BigInteger),
        sa.Column("finalizing_ms", sa.BigInteger),
        sa.Column("cancelling_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        *(sa.Column(name, sa.Integer, nullable=False, server_default="0") for name in counts),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in tokens),
        sa.Column("next_byte", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("next_line", sa.Integer, nullable=False, server_default="1"),
        sa.Column("owner", sa.String(64), nullable=False, server_default=""),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("swept", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    _index("batches_of_tenant", "batches", ["tenant", "created_ms", "id"])
    _index("batches_unended", "batches", ["lease_until_ms"], "ended_ms IS NULL")
    _index("batches_unswept", "batches", ["ended_ms"], "swept = false AND ended_ms IS NOT NULL")
    _index("batches_of_input", "batches", ["input_file_id"], "ended_ms IS NULL")


def _lines() -> None:
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("custom_id", sa.LargeBinary, nullable=False),
        sa.Column("first_byte", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(128), nullable=False, server_default=""),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("record", sa.LargeBinary),
    )
    _index("batch_lines_open", "batch_lines", ["batch_id", "number"], "state = 'open'")
    _index("batch_lines_of_job", "batch_lines", ["job_id"], "state = 'open'")


def downgrade() -> None:
    """Takes the tables away, with all that is in them, and the column."""
    for table in ("batch_lines", "batches", "file_chunks", "files"):
        op.drop_table(table)
    op.drop_index("jobs_listed", "jobs")
    op.drop_column("jobs", "batch")
