"""The tables, once, for SQLite and PostgreSQL. Migrations create them; `tests/contracts` compares the two.

Times are UTC. Token counts are BIGINT. `usage_events` is insert-only, and so is `audit_log`, by triggers.
On PostgreSQL `usage_events` is partitioned by `started_at`, which is therefore part of its primary key there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect


class UtcTime(TypeDecorator[datetime]):
    """A moment. SQLite keeps no time zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Only moments with a time zone go in."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC comes out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("max_streams", Integer, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("external_id", String(200)),
    Column("default_model", String(256)),
    Column("time_zone", String(64), nullable=False, server_default="UTC"),
    Column("metadata", JSON, nullable=False, server_default="{}"),
    Column("deleted_at", UtcTime),
    Column("limits", JSON, nullable=False, server_default="{}"),
    Column("end_user_limits", JSON, nullable=False, server_default="{}"),
    Column("max_waiters", Integer, nullable=False, server_default="0"),
    Column("max_wait_seconds", Integer, nullable=False, server_default="30"),
    Column("weight", Integer, nullable=False, server_default="1"),
    Column("resume_minutes", Integer, nullable=False, server_default="0"),
    Index(
        "uq_tenants_external_id",
        "external_id",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("created_by", String(400), nullable=False, server_default=""),
    Column("expires_at", UtcTime),
    Column("models", JSON(none_as_null=True)),
    Column("max_streams", Integer),
    Column("allowed_addresses", JSON, nullable=False, server_default="[]"),
    Column("previous_sha256", LargeBinary(32)),
    Column("previous_until", UtcTime),
    Column("last_used_at", UtcTime),
    Column("limits", JSON, nullable=False, server_default="{}"),
    Index("ix_api_keys_tenant_id", "tenant_id"),
)

users = Table(
    "users",
    metadata,
    Column("email", String(320), primary_key=True),
    Column("password_hash", String(200), nullable=False),
)

revoked_tokens = Table(
    "revoked_tokens",
    metadata,
    Column("tenant_id", String(40), primary_key=True),  # "" for an admin's
    Column("token_id", String(128), primary_key=True),
    Column("revoked_at", UtcTime, nullable=False),
    Index("ix_revoked_tokens_revoked_at", "revoked_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(400), nullable=False),
    Column("address", String(64), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("action", String(40), nullable=False),
    Column("tenant_id", String(40)),
    Column("kind", String(20), nullable=False),
    Column("target", String(400), nullable=False),
    Column("details", JSON, nullable=False),
    Index("ix_audit_log_tenant_id", "tenant_id", "id"),
)


def _labels() -> list[Column[Any]]:
    """What a booking knows, and its event repeats. No foreign keys: the ledger outlives its tenants."""
    return [
        Column("id", String(40), primary_key=True),
        Column("request_id", String(128), nullable=False),
        Column("tenant_id", String(40), nullable=False),
        Column("key_id", String(12)),
        Column("end_user", String(200)),
        Column("dialect", String(40), nullable=False),
        Column("model", String(256), nullable=False),
        Column("upstream", String(100), nullable=False),
        Column("worker", String(100), nullable=False),
        Column("started_at", UtcTime, nullable=False),
        Column("token_id", String(128)),
    ]


in_flight = Table(
    "in_flight",
    metadata,
    *_labels(),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("checkpoint_at", UtcTime),
    Index("ix_in_flight_tenant_id", "tenant_id", "id"),
    Index("ix_in_flight_worker", "worker", "id"),
)

usage_events = Table(
    "usage_events",
    metadata,
    *_labels(),
    Column("answered_model", String(256), nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("source", String(20), nullable=False),
    Column("certainty", String(20), nullable=False),
    Column("tokenizer", String(40)),
    Column("ended", String(20), nullable=False),
    Column("cause", String(40), nullable=False),
    Column("first_token_ms", BigInteger),
    Column("duration_ms", BigInteger, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("cost_nano_dollars", BigInteger),
    Column("price_version", String(40)),
    Column("corrects", String(40)),  # the booking whose event this one corrects, by differences
    Index("ix_usage_events_tenant_id_id", "tenant_id", "id"),
    Index(
        "ix_usage_events_corrects",
        "corrects",
        sqlite_where=text("corrects IS NOT NULL"),
        postgresql_where=text("corrects IS NOT NULL"),
    ),
    Index(
        "ix_usage_events_token_id",
        "tenant_id",
        "token_id",
        sqlite_where=text("token_id IS NOT NULL"),
        postgresql_where=text("token_id IS NOT NULL"),
    ),
)

retired_usage = Table(  # events that began before that may be gone: retention took them
    "retired_usage",
    metadata,
    Column("before", UtcTime, primary_key=True),
    Column("retired_at", UtcTime, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("beat", BigInteger, nullable=False),  # goes up while it lives
    Column("started_at", UtcTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

prices = Table(
    "prices",
    metadata,
    Column("version", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("model", String(256), nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("input", BigInteger, nullable=False),  # nano-dollars per million tokens, as the next three
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(400), nullable=False),
)

markups = Table(
    "markups",
    metadata,
    Column("version", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("basis_points", Integer, nullable=False),  # 2000 is 20 per cent more; below 0 is a discount
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(400), nullable=False),
)

upstreams = Table(
    "upstreams",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("secret", LargeBinary),  # its key, sealed
    Column("key_hint", String(8)),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", String(400), nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("tenant_id", String(40), primary_key=True),  # "" is for all
    Column("name", String(256), primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", String(400), nullable=False),
)

provider_keys = Table(
    "provider_keys",
    metadata,
    Column("tenant_id", String(40), primary_key=True),
    Column("upstream", String(100), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("key_hint", String(8), nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", String(400), nullable=False),
)

rollup_queue = Table(
    "rollup_queue",
    metadata,
    Column("event_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Index("ix_rollup_queue_tenant_id", "tenant_id", "started_at"),
)

usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("tenant_id", String(40), primary_key=True),
    Column("cube", String(10), primary_key=True),  # quarter, day or user: core.usage_query
    Column("starts_at", UtcTime, primary_key=True),
    Column("key_id", String(12), primary_key=True),  # "" is none, here and in end_user
    Column("end_user", String(200), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("upstream", String(100), primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_nano_dollars", BigInteger, nullable=False),
    Index("ix_usage_rollups_cube", "cube", "starts_at"),
    Index(
        "ix_usage_rollups_end_user",
        "tenant_id",
        "end_user",
        "starts_at",
        sqlite_where=text("cube = 'user'"),
        postgresql_where=text("cube = 'user'"),
    ),
)

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", String(40), primary_key=True),
    Column("started_at", UtcTime, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("delivered_at", UtcTime),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", UtcTime, nullable=False),
    Column("dead_at", UtcTime),
    Column("error", String(200)),
    Index(
        "ix_outbox_due",
        "next_at",
        sqlite_where=text("delivered_at IS NULL AND dead_at IS NULL"),
        postgresql_where=text("delivered_at IS NULL AND dead_at IS NULL"),
    ),
    Index(
        "ix_outbox_dead",
        "event_id",
        sqlite_where=text("dead_at IS NOT NULL"),
        postgresql_where=text("dead_at IS NOT NULL"),
    ),
)
