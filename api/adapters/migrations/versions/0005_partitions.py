"""Events by month on PostgreSQL, and insert-only on both; what open bookings are looked for by has indexes.

On PostgreSQL nobody waits for longer than a moment, and no row is written again: beside all reading and
writing the old table gets the index and the check of a partition, and in a short transaction it becomes one.

Revision ID: 0005
"""

from datetime import datetime, timedelta

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, text

from api.adapters.migrating_sql import alone, make_index, together
from api.adapters.tables_sql import UtcTime
from api.core.months import month_of, months_on

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_EVENTS = "usage_events"
_DEFAULT = "usage_events_default"
_UNIQUE = "uq_usage_events_id_started_at"
_CHECK = "usage_events_until"
_INDEXES = {
    "tenant_id_id": "(tenant_id, id)",
    "corrects": "(corrects) WHERE corrects IS NOT NULL",
    "token_id": "(tenant_id, token_id) WHERE token_id IS NOT NULL",
}
_OPEN = {"ix_in_flight_tenant_id": ["tenant_id", "id"], "ix_in_flight_worker": ["worker", "id"]}
_QUEUED = (
    f"CREATE CONSTRAINT TRIGGER {_EVENTS}_queued AFTER INSERT ON {_EVENTS} DEFERRABLE INITIALLY DEFERRED"
    f" FOR EACH ROW EXECUTE FUNCTION {_EVENTS}_queue()"
)
_REFUSE = (
    f"CREATE FUNCTION {_EVENTS}_append_only() RETURNS trigger LANGUAGE plpgsql AS"
    f" $$ BEGIN RAISE EXCEPTION '{_EVENTS} is append-only'; END $$"
)
_NO_CHANGE = (
    f"CREATE TRIGGER {_EVENTS}_append_only BEFORE UPDATE OR DELETE ON {_EVENTS}"
    f" FOR EACH ROW EXECUTE FUNCTION {_EVENTS}_append_only()"
)
_NO_TRUNCATE = (
    f"CREATE TRIGGER {_EVENTS}_no_truncate BEFORE TRUNCATE ON {{}}"
    f" FOR EACH STATEMENT EXECUTE FUNCTION {_EVENTS}_append_only()"
)
_MARGIN = timedelta(days=31)
"""The old table takes events for so long at least: one that was killed can be done again until then."""


def upgrade() -> None:
    connection, sqlite = op.get_bind(), op.get_bind().dialect.name == "sqlite"
    if not sqlite:
        with op.get_context().autocommit_block():
            until = _prepare(connection)
    op.create_table(
        "retired_usage",
        sa.Column("before", UtcTime, primary_key=True),
        sa.Column("retired_at", UtcTime, nullable=False),
    )
    if sqlite:
        for name, columns in _OPEN.items():
            op.create_index(name, "in_flight", columns)
        _insert_only_sqlite()
    else:
        together(connection, lambda: _partition(connection, until))


def _insert_only_sqlite() -> None:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{_EVENTS} is append-only'); END"
    for verb in ("UPDATE", "DELETE"):
        op.execute(f"CREATE TRIGGER {_EVENTS}_no_{verb.lower()} BEFORE {verb} ON {_EVENTS} {refuse}")
    op.execute(  # INSERT OR REPLACE deletes without a trigger
        f"CREATE TRIGGER {_EVENTS}_no_replace BEFORE INSERT ON {_EVENTS} "  # noqa: S608 - a constant
        f"WHEN EXISTS (SELECT 1 FROM {_EVENTS} WHERE id = NEW.id) {refuse}"
    )


# --- PostgreSQL -------------------------------------------------------------------------------------


def _prepare(connection: Connection) -> datetime:
    """What takes long, beside all reading and writing. Returns when the old table's time ends."""
    for name, columns in _OPEN.items():
        make_index(connection, name, f"in_flight ({', '.join(columns)})")
    make_index(connection, _UNIQUE, f"{_EVENTS} (id, started_at)", unique=True)
    newest = connection.scalar(text(f"SELECT greatest(now(), max(started_at)) FROM {_EVENTS}"))  # noqa: S608
    until = months_on(month_of(newest + _MARGIN), 1)
    check = f"CHECK (started_at < '{until.isoformat()}') NOT VALID"
    alone(
        connection,
        f"ALTER TABLE {_EVENTS} DROP CONSTRAINT IF EXISTS {_CHECK}, ADD CONSTRAINT {_CHECK} {check}",
    )
    alone(connection, f"ALTER TABLE {_EVENTS} VALIDATE CONSTRAINT {_CHECK}")
    return until


def _partition(connection: Connection, until: datetime) -> None:
    """The short transaction: the old table becomes the first partition, or goes if nothing is in it."""
    old = f"{_EVENTS}_until_{until:%Y_%m}"
    connection.execute(text(f"LOCK TABLE {_EVENTS} IN ACCESS EXCLUSIVE MODE"))
    is_empty = connection.scalar(text(f"SELECT NOT EXISTS (SELECT FROM {_EVENTS})"))  # noqa: S608
    key = _primary_key(connection)
    like = f"LIKE {old} INCLUDING ALL EXCLUDING CONSTRAINTS EXCLUDING INDEXES"
    for statement in (
        f"ALTER TABLE {_EVENTS} DROP CONSTRAINT {key}",
        f"ALTER TABLE {_EVENTS} ADD CONSTRAINT {old}_pkey PRIMARY KEY USING INDEX {_UNIQUE}",
        f"DROP TRIGGER {_EVENTS}_queued ON {_EVENTS}",
        f"ALTER TABLE {_EVENTS} RENAME TO {old}",
        *(f"ALTER INDEX ix_{_EVENTS}_{name} RENAME TO {old}_{name}_idx" for name in _INDEXES),
        f"CREATE TABLE {_EVENTS} ({like}) PARTITION BY RANGE (started_at)",
        f"ALTER TABLE {_EVENTS} ADD CONSTRAINT {key} PRIMARY KEY (id, started_at)",
        *(f"CREATE INDEX ix_{_EVENTS}_{name} ON {_EVENTS} {on}" for name, on in _INDEXES.items()),
        *_grants(connection),
        f"ALTER TABLE {_EVENTS} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ('{until.isoformat()}')",
        f"ALTER TABLE {old} DROP CONSTRAINT {_CHECK}",
        f"CREATE TABLE {_DEFAULT} PARTITION OF {_EVENTS} DEFAULT",
        _REFUSE,
        _NO_CHANGE,
        *(_NO_TRUNCATE.format(table) for table in (_EVENTS, old, _DEFAULT)),
        _QUEUED,
        *([f"DROP TABLE {old}"] if is_empty else []),
    ):
        connection.execute(text(statement))


def _primary_key(connection: Connection) -> str:
    name = f"SELECT conname FROM pg_constraint WHERE conrelid = '{_EVENTS}'::regclass AND contype = 'p'"  # noqa: S608
    return str(connection.scalar(text(name)))


def _grants(connection: Connection) -> list[str]:
    """Whoever may read or write the table may go on."""
    given = text(
        f"SELECT format('GRANT %s ON {_EVENTS} TO %s', privilege_type,"  # noqa: S608 - a constant
        " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)"
        f" FROM pg_class, aclexplode(relacl) WHERE oid = '{_EVENTS}'::regclass"
    )
    return list(connection.execute(given).scalars())


def downgrade() -> None:
    """On PostgreSQL all events are written again, and whoever wants to write one waits."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for what in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER {_EVENTS}_no_{what}")
    else:
        together(connection, lambda: _unpartition(connection))
    for name in _OPEN:
        op.drop_index(name, "in_flight")
    op.drop_table("retired_usage")


def _unpartition(connection: Connection) -> None:
    plain = f"{_EVENTS}_plain"
    connection.execute(text(f"LOCK TABLE {_EVENTS} IN ACCESS EXCLUSIVE MODE"))
    key, grants = _primary_key(connection), _grants(connection)
    for statement in (
        f"CREATE TABLE {plain} (LIKE {_EVENTS} INCLUDING ALL EXCLUDING INDEXES)",
        f"INSERT INTO {plain} SELECT * FROM {_EVENTS}",  # noqa: S608 - constants
        f"DROP TABLE {_EVENTS}",
        f"DROP FUNCTION {_EVENTS}_append_only()",
        f"ALTER TABLE {plain} RENAME TO {_EVENTS}",
        f"ALTER TABLE {_EVENTS} ADD CONSTRAINT {key} PRIMARY KEY (id)",
        *(f"CREATE INDEX ix_{_EVENTS}_{name} ON {_EVENTS} {on}" for name, on in _INDEXES.items()),
        *grants,
        _QUEUED,
    ):
        connection.execute(text(statement))
