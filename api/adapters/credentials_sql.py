"""What authentication asks of the database: keys, tenants, admins, and the feed of changes.

On a pool of its own, so that a flood of credentials and the ledger do not wait for each other (P10).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select

from api.adapters.accounts_sql import Book
from api.adapters.limits_sql import limits_of, streams_in_shadow
from api.adapters.tables_sql import api_keys, audit_log, revoked_tokens, tenants, users
from auth.memory import LATEST, REVOKED_SECONDS, token_name
from auth.principal import Change, Scope, StoredKey, StoredTenant, StoredUser, Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.ports import Clock

_TENANT = (
    tenants.c.id.label("tenant"),
    tenants.c.active,
    tenants.c.max_streams.label("tenant_max_streams"),
    tenants.c.default_model,
    tenants.c.limits.label("tenant_limits"),
    tenants.c.end_user_limits,
    tenants.c.time_zone,
    tenants.c.max_waiters,
    tenants.c.max_wait_seconds,
    tenants.c.weight,
    tenants.c.resume_minutes,
)


class SqlCredentials:
    """Reads only. Raises AccountsUnavailable within two seconds where the database is away."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._book = Book(engine, clock)

    async def find_key(self, key_id: str) -> StoredKey | None:
        """The key with that id, with its tenant, or None."""
        query = select(api_keys, *_TENANT).join(tenants, tenants.c.id == api_keys.c.tenant_id)
        row = await self._one(query.where(api_keys.c.id == key_id))
        return None if row is None else _key(row)

    async def find_tenant(self, name: str) -> StoredTenant | None:
        """The tenant with that id or that external id, or None. An id counts before an external id."""
        named = or_(tenants.c.id == name, tenants.c.external_id == name)
        query = select(*_TENANT).where(named, tenants.c.deleted_at.is_(None))
        row = await self._one(query.order_by((tenants.c.id == name).desc()).limit(1))
        return None if row is None else _tenant(row)

    async def find_user(self, email: str) -> StoredUser | None:
        """The admin with that address, or None."""
        row = await self._one(select(users).where(users.c.email == email.casefold()))
        return None if row is None else StoredUser(**row)

    async def revoked_tokens(self) -> list[str]:
        """The names of all tokens that were revoked and may still live."""
        since = self._book.clock.now() - timedelta(seconds=REVOKED_SECONDS)
        query = select(revoked_tokens).where(revoked_tokens.c.revoked_at > since)
        async with self._book.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return [token_name(row["tenant_id"], row["token_id"]) for row in rows]

    async def changes(self, after: int | None, gaps: Sequence[int] = ()) -> list[Change]:
        """The feed behind number `after`, and what has come to stand at `gaps`, by number.

        None: the last LATEST entries.
        """
        query = select(audit_log.c.id, audit_log.c.kind, audit_log.c.target)
        if after is None:
            query = query.order_by(audit_log.c.id.desc()).limit(LATEST)
        else:
            wanted = audit_log.c.id > after
            wanted = or_(wanted, audit_log.c.id.in_(gaps)) if gaps else wanted
            query = query.where(wanted).order_by(audit_log.c.id)
        async with self._book.reading() as connection:
            rows = (await connection.execute(query)).all()
        changes = [Change(*row) for row in rows]
        return changes[::-1] if after is None else changes

    async def _one(self, query: Any) -> RowMapping | None:
        async with self._book.reading() as connection:
            row: RowMapping | None = (await connection.execute(query)).mappings().one_or_none()
            return row


def _tenant(row: RowMapping) -> StoredTenant:
    terms = ("time_zone", "max_waiters", "max_wait_seconds", "weight", "resume_minutes")
    return StoredTenant(
        id=row["tenant"],
        active=row["active"],
        max_streams=row["tenant_max_streams"],
        default_model=row["default_model"],
        more_limits=limits_of("tenant", row["tenant"], row["tenant_limits"]),
        streams_in_shadow=streams_in_shadow(row["tenant_limits"]),
        terms=Terms(
            **{name: row[name] for name in terms},
            end_user_limits=limits_of("user", "", row["end_user_limits"]),
        ),
    )


def _key(row: RowMapping) -> StoredKey:
    same = ("id", "secret_sha256", "revoked_at", "expires_at", "previous_sha256", "previous_until")
    return StoredKey(
        **{name: row[name] for name in (*same, "max_streams")},
        tenant=_tenant(row),
        scopes=frozenset(Scope(word) for word in row["scopes"].split()),
        models=None if row["models"] is None else tuple(row["models"]),
        allowed_addresses=tuple(row["allowed_addresses"]),
        more_limits=limits_of("key", row["id"], row["limits"]),
        streams_in_shadow=streams_in_shadow(row["limits"]),
    )
