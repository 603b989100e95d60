"""Prices in versions, corrections, roll-ups, the outbox, and who of the workers lives.

Prices and markups take no update and no delete: triggers refuse them, as those of the audit log.

New tables, and two columns without a default: nothing is rewritten, and on PostgreSQL nobody waits for longer
than a moment. Events that are there already are queued for the roll-ups. Older workers go on writing, and
know of no queue: on PostgreSQL a trigger queues their events when they commit; it does nothing where a newer
worker has queued its event itself.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, text

from api.adapters.migrating_sql import alone, make_index
from api.adapters.tables_sql import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_SUMS = (
    "events",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nano_dollars",
)
_VERSIONED = ("prices", "markups")
_DUE = sa.text("delivered_at IS NULL AND dead_at IS NULL")
_DEAD = sa.text("dead_at IS NOT NULL")
_USERS = sa.text("cube = 'user'")
_CORRECTS = sa.text("corrects IS NOT NULL")
_QUEUE = """
CREATE OR REPLACE FUNCTION usage_events_queue() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO rollup_queue (event_id, tenant_id, started_at) VALUES (NEW.id, NEW.tenant_id, NEW.started_at)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$
"""
_QUEUED = """
CREATE CONSTRAINT TRIGGER usage_events_queued AFTER INSERT ON usage_events DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION usage_events_queue()
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.add_column("usage_events", sa.Column("price_version", sa.String(40)))
        op.add_column("usage_events", sa.Column("corrects", sa.String(40)))
        op.create_index("ix_usage_events_corrects", "usage_events", ["corrects"], sqlite_where=_CORRECTS)
        _queue()
    else:
        _queue()
        op.execute(_QUEUE)
        with op.get_context().autocommit_block():
            _change_events(op.get_bind())
    op.create_table(
        "workers",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("started_at", UtcTime, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("holder", sa.String(100), nullable=False),
        sa.Column("expires_at", UtcTime, nullable=False),
    )
    _prices()
    _rollups()
    _outbox()
    op.execute(
        "INSERT INTO rollup_queue (event_id, tenant_id, started_at)"
        " SELECT id, tenant_id, started_at FROM usage_events WHERE TRUE ON CONFLICT DO NOTHING"
    )


def _change_events(connection: Connection) -> None:
    """On PostgreSQL: each step by itself."""
    alone(
        connection,
        "ALTER TABLE usage_events ADD COLUMN IF NOT EXISTS price_version VARCHAR(40),"
        " ADD COLUMN IF NOT EXISTS corrects VARCHAR(40)",
    )
    make_index(connection, "ix_usage_events_corrects", "usage_events (corrects) WHERE corrects IS NOT NULL")
    made = (
        "SELECT FROM pg_trigger WHERE tgrelid = 'usage_events'::regclass AND tgname = 'usage_events_queued'"
    )
    if not connection.scalar(text(f"SELECT EXISTS ({made})")):
        alone(connection, _QUEUED)


def _prices() -> None:
    op.create_table(
        "prices",
        sa.Column("version", _BIG, primary_key=True),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("valid_from", UtcTime, nullable=False),
        sa.Column("input", sa.BigInteger, nullable=False),
        sa.Column("cached_input", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("created_by", sa.String(400), nullable=False),
    )
    # What the scripted model is made to cost: one dollar per million tokens of input, two of output.
    since, now = "'2020-01-01 00:00:00+00'", "CURRENT_TIMESTAMP"
    if op.get_bind().dialect.name == "sqlite":
        since, now = "'2020-01-01 00:00:00.000000'", "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    op.execute(
        "INSERT INTO prices"  # noqa: S608 - constants
        " (model, valid_from, input, cached_input, output, reasoning, created_at, created_by)"
        f" VALUES ('scripted*', {since}, 1000000000, 500000000, 2000000000, 2000000000, {now}, 'migration')"
    )
    op.create_table(
        "markups",
        sa.Column("version", _BIG, primary_key=True),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("valid_from", UtcTime, nullable=False),
        sa.Column("basis_points", sa.Integer, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("created_by", sa.String(400), nullable=False),
    )
    for table in _VERSIONED:
        _versions_stay(table)


def _versions_stay(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        op.execute(  # INSERT OR REPLACE deletes without a trigger
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - a constant
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE version = NEW.version) "
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


def _queue() -> None:
    op.create_table(
        "rollup_queue",
        sa.Column("event_id", sa.String(40), primary_key=True),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("started_at", UtcTime, nullable=False),
        if_not_exists=True,
    )
    op.create_index(
        "ix_rollup_queue_tenant_id", "rollup_queue", ["tenant_id", "started_at"], if_not_exists=True
    )


def _rollups() -> None:
    op.create_table(
        "usage_rollups",
        sa.Column("tenant_id", sa.String(40), primary_key=True),
        sa.Column("cube", sa.String(10), primary_key=True),
        sa.Column("starts_at", UtcTime, primary_key=True),
        sa.Column("key_id", sa.String(12), primary_key=True),
        sa.Column("end_user", sa.String(200), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("upstream", sa.String(100), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
    )
    op.create_index("ix_usage_rollups_cube", "usage_rollups", ["cube", "starts_at"])
    op.create_index(
        "ix_usage_rollups_end_user",
        "usage_rollups",
        ["tenant_id", "end_user", "starts_at"],
        sqlite_where=_USERS,
        postgresql_where=_USERS,
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("event_id", sa.String(40), primary_key=True),
        sa.Column("started_at", UtcTime, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("delivered_at", UtcTime),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", UtcTime, nullable=False),
        sa.Column("dead_at", UtcTime),
        sa.Column("error", sa.String(200)),
    )
    op.create_index("ix_outbox_due", "outbox", ["next_at"], sqlite_where=_DUE, postgresql_where=_DUE)
    op.create_index("ix_outbox_dead", "outbox", ["event_id"], sqlite_where=_DEAD, postgresql_where=_DEAD)


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP TRIGGER usage_events_queued ON usage_events")
        op.execute("DROP FUNCTION usage_events_queue()")
    for table in ("outbox", "usage_rollups", "rollup_queue", "markups", "prices", "leases", "workers"):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        for table in _VERSIONED:
            op.execute(f"DROP FUNCTION {table}_append_only()")
    op.drop_index("ix_usage_events_corrects", "usage_events")
    with op.batch_alter_table("usage_events") as events:
        events.drop_column("corrects")
        events.drop_column("price_version")
