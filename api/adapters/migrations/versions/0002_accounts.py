"""Accounts: limits and expiry of keys, rotation, tenants' states, revoked tokens, the audit log.

The audit log takes no update and no delete: triggers refuse them.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

from api.adapters.tables_sql import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LEDGER = ("in_flight", "usage_events")


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("external_id", sa.String(200)))
        tenants.add_column(sa.Column("default_model", sa.String(256)))
        tenants.add_column(sa.Column("time_zone", sa.String(64), nullable=False, server_default="UTC"))
        tenants.add_column(sa.Column("metadata", sa.JSON, nullable=False, server_default="{}"))
        tenants.add_column(sa.Column("deleted_at", UtcTime))
    present = sa.text("deleted_at IS NULL")
    op.create_index(
        "uq_tenants_external_id",
        "tenants",
        ["external_id"],
        unique=True,
        sqlite_where=present,
        postgresql_where=present,
    )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("created_by", sa.String(400), nullable=False, server_default=""))
        keys.add_column(sa.Column("expires_at", UtcTime))
        keys.add_column(sa.Column("models", sa.JSON(none_as_null=True)))
        keys.add_column(sa.Column("max_streams", sa.Integer))
        keys.add_column(sa.Column("allowed_addresses", sa.JSON, nullable=False, server_default="[]"))
        keys.add_column(sa.Column("previous_sha256", sa.LargeBinary(32)))
        keys.add_column(sa.Column("previous_until", UtcTime))
        keys.add_column(sa.Column("last_used_at", UtcTime))
    for name in _LEDGER:
        with op.batch_alter_table(name) as table:
            table.alter_column("key_id", existing_type=sa.String(12), nullable=True)
            table.add_column(sa.Column("token_id", sa.String(128)))
    bought = sa.text("token_id IS NOT NULL")
    op.create_index(
        "ix_usage_events_token_id",
        "usage_events",
        ["tenant_id", "token_id"],
        sqlite_where=bought,
        postgresql_where=bought,
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("tenant_id", sa.String(40), primary_key=True),
        sa.Column("token_id", sa.String(128), primary_key=True),
        sa.Column("revoked_at", UtcTime, nullable=False),
    )
    op.create_index("ix_revoked_tokens_revoked_at", "revoked_tokens", ["revoked_at"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("actor", sa.String(400), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40)),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("target", sa.String(400), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_audit_log_tenant_id", "audit_log", ["tenant_id", "id"])
    _append_only("audit_log")


def _append_only(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        op.execute(  # INSERT OR REPLACE deletes without a trigger
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - a constant
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )


def downgrade() -> None:
    """What the older tables have no place for goes: the audit log, and which token used something."""
    op.drop_table("audit_log")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_log_append_only()")
    op.drop_table("revoked_tokens")
    op.drop_index("ix_usage_events_token_id", "usage_events")
    for name in _LEDGER:
        op.execute(f"UPDATE {name} SET key_id = '' WHERE key_id IS NULL")  # noqa: S608 - a constant
        with op.batch_alter_table(name) as table:
            table.drop_column("token_id")
            table.alter_column("key_id", existing_type=sa.String(12), nullable=False)
    with op.batch_alter_table("api_keys") as keys:
        for column in (
            "created_by",
            "expires_at",
            "models",
            "max_streams",
            "allowed_addresses",
            "previous_sha256",
            "previous_until",
            "last_used_at",
        ):
            keys.drop_column(column)
    op.drop_index("uq_tenants_external_id", "tenants")
    with op.batch_alter_table("tenants") as tenants:
        for column in ("external_id", "default_model", "time_zone", "metadata", "deleted_at"):
            tenants.drop_column(column)
