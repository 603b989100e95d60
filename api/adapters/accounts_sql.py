"""Tenants, keys and admins on SQL. Only hashes of secrets are stored."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import api_keys, tenants, users
from api.core.ids import ENTROPY_BYTES, sortable_id
from api.ports import AccountsUnavailable, KeyInfo, NoSuchTenant, Tenant
from auth import keys
from auth.principal import Scope, StoredKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.ports import Clock


_PATIENCE_SECONDS = 2.0
"""How long a caller waits for the database to say who it is."""


class SqlAccounts:
    """Reads and writes accounts."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS), self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(**WRITES)
                async with connection.begin():
                    yield connection
        except (OperationalError, InterfaceError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error

    async def find_key(self, key_id: str) -> StoredKey | None:
        """What authentication needs to know of a key."""
        query = (
            select(api_keys, tenants.c.active, tenants.c.max_streams)
            .join(tenants, tenants.c.id == api_keys.c.tenant_id)
            .where(api_keys.c.id == key_id)
        )
        async with self._reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        return StoredKey(
            id=row["id"],
            tenant_id=row["tenant_id"],
            secret_sha256=row["secret_sha256"],
            scopes=frozenset(_scopes(row["scopes"])),
            revoked_at=row["revoked_at"],
            tenant_active=row["active"],
            max_streams=row["max_streams"],
        )

    async def create_tenant(self, name: str, max_streams: int) -> Tenant:
        """A new tenant."""
        now = self._clock.now()
        tenant_id = sortable_id("tn_", int(now.timestamp() * 1000), secrets.token_bytes(ENTROPY_BYTES))
        tenant = Tenant(tenant_id, name, max_streams, active=True, created_at=now)
        async with self._writing() as connection:
            await connection.execute(
                insert(tenants).values(
                    id=tenant.id, name=name, max_streams=max_streams, active=True, created_at=now
                )
            )
        return tenant

    async def tenants(self) -> list[Tenant]:
        """All tenants, oldest first."""
        async with self._reading() as connection:
            rows = (await connection.execute(select(tenants).order_by(tenants.c.id))).mappings()
            return [_tenant(row) for row in rows]

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """One tenant."""
        async with self._reading() as connection:
            query = select(tenants).where(tenants.c.id == tenant_id)
            row = (await connection.execute(query)).mappings().one_or_none()
        return _tenant(row) if row is not None else None

    async def issue_key(self, tenant_id: str, name: str, scopes: frozenset[Scope]) -> tuple[KeyInfo, str]:
        """A new key, and its text, which cannot be had again."""
        key = keys.mint()
        ordered = tuple(sorted(scopes))
        info = KeyInfo(key.id, tenant_id, name, ordered, self._clock.now(), revoked_at=None)
        try:
            async with self._writing() as connection:
                await connection.execute(
                    insert(api_keys).values(
                        id=key.id,
                        tenant_id=tenant_id,
                        name=name,
                        secret_sha256=key.sha256,
                        scopes=" ".join(ordered),
                        created_at=info.created_at,
                    )
                )
        except IntegrityError:
            raise NoSuchTenant(f"No tenant has the id `{tenant_id}`.") from None
        return info, key.text

    async def keys(self, tenant_id: str) -> list[KeyInfo]:
        """A tenant's keys, oldest first."""
        query = (
            select(api_keys)
            .where(api_keys.c.tenant_id == tenant_id)
            .order_by(api_keys.c.created_at, api_keys.c.id)
        )
        async with self._reading() as connection:
            return [_key_info(row) for row in (await connection.execute(query)).mappings()]

    async def revoke_key(self, key_id: str) -> KeyInfo | None:
        """Revoke a key. The first revocation's time stands."""
        async with self._writing() as connection:
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock.now())
            )
            query = select(api_keys).where(api_keys.c.id == key_id)
            row = (await connection.execute(query)).mappings().one_or_none()
        return _key_info(row) if row is not None else None

    async def password_hash(self, email: str) -> str | None:
        """The stored hash of an admin's password."""
        query = select(users.c.password_hash).where(users.c.email == email.casefold())
        async with self._reading() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def put_admin(self, email: str, password_hash: str) -> None:
        """Create an admin, or change the password."""
        email = email.casefold()
        async with self._writing() as connection:
            await connection.execute(delete(users).where(users.c.email == email))
            await connection.execute(insert(users).values(email=email, password_hash=password_hash))


def _scopes(text: str) -> tuple[Scope, ...]:
    return tuple(Scope(word) for word in text.split())


def _tenant(row: RowMapping) -> Tenant:
    return Tenant(**{name: row[name] for name in Tenant.__dataclass_fields__})


def _key_info(row: RowMapping) -> KeyInfo:
    return KeyInfo(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        scopes=_scopes(row["scopes"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
