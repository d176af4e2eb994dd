"""The journal: accepted jobs and how they ended, and the ledger's identity."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes both tables, and this ledger's identity."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("pool", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("idempotency", sa.String(128), nullable=False, server_default=""),
        sa.Column("fingerprint", sa.String(128), nullable=False, server_default=""),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("cancel_asked", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("status", sa.String(16)),
        sa.Column("outcome", sa.LargeBinary),
        sa.Column("result", sa.LargeBinary),
        sa.Column("fence", sa.BigInteger),
        sa.Column("attempt", sa.Integer),
        sa.Column("failures", sa.Integer),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("finished_ms", sa.BigInteger),
    )
    is_open, is_ended = sa.text("status IS NULL"), sa.text("status IS NOT NULL")
    op.create_index("jobs_open", "jobs", ["pool", "id"], postgresql_where=is_open, sqlite_where=is_open)
    op.create_index("jobs_ended", "jobs", ["finished_ms"], postgresql_where=is_ended, sqlite_where=is_ended)
    is_keyed = sa.text("idempotency <> ''")
    op.create_index("jobs_keyed", "jobs", ["tenant", "idempotency"], postgresql_where=is_keyed, sqlite_where=is_keyed)
    op.create_index("jobs_of_tenant", "jobs", ["tenant", "created_ms", "id"])
    identity = op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(identity, [{"id": secrets.token_hex(16)}])


def downgrade() -> None:
    """Takes both away, with all that is in them."""
    op.drop_table("identity")
    op.drop_table("jobs")
