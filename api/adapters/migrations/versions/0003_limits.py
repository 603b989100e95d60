"""Limits of tenants, of their end users and of keys; a tenant's queue and weight; what a request cost.

Only columns with constant defaults: neither database rewrites a table for them. Keys come before tenants, as
authentication reads them: with a worker that is still running, PostgreSQL's locks make no circle.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TENANTS = ("limits", "end_user_limits", "max_waiters", "max_wait_seconds", "weight")


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("limits", sa.JSON, nullable=False, server_default="{}"))
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("limits", sa.JSON, nullable=False, server_default="{}"))
        tenants.add_column(sa.Column("end_user_limits", sa.JSON, nullable=False, server_default="{}"))
        tenants.add_column(sa.Column("max_waiters", sa.Integer, nullable=False, server_default="0"))
        tenants.add_column(sa.Column("max_wait_seconds", sa.Integer, nullable=False, server_default="30"))
        tenants.add_column(sa.Column("weight", sa.Integer, nullable=False, server_default="1"))
    with op.batch_alter_table("usage_events") as events:
        events.add_column(sa.Column("cost_nano_dollars", sa.BigInteger))


def downgrade() -> None:
    with op.batch_alter_table("usage_events") as events:
        events.drop_column("cost_nano_dollars")
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_column("limits")
    with op.batch_alter_table("tenants") as tenants:
        for column in _TENANTS:
            tenants.drop_column(column)
