"""Models, upstreams, and tenants' own keys at them; streams that are kept to be attached to again.

Revision ID: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from api.adapters.tables_sql import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _stamps() -> list[sa.Column[Any]]:
    return [
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("updated_by", sa.String(400), nullable=False),
    ]


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("resume_minutes", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "upstreams",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("secret", sa.LargeBinary),
        sa.Column("key_hint", sa.String(8)),
        *_stamps(),
        sa.PrimaryKeyConstraint("name", name="pk_upstreams"),
    )
    op.create_table(
        "models",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        *_stamps(),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="pk_models"),
    )
    op.create_table(
        "provider_keys",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("upstream", sa.String(100), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("key_hint", sa.String(8), nullable=False),
        *_stamps(),
        sa.PrimaryKeyConstraint("tenant_id", "upstream", name="pk_provider_keys"),
    )


def downgrade() -> None:
    for table in ("provider_keys", "models", "upstreams"):
        op.drop_table(table)
    with op.batch_alter_table("tenants") as tenants:
        tenants.drop_column("resume_minutes")
