"""Tenants, admins and the audit log on SQL. Only hashes of secrets are stored.

Every change appends to the audit log in its own transaction; that log is also the feed from which workers
learn what to forget (auth.memory), so neither can miss what the other has.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from dataclasses import fields as fields_of
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from api.accounts import AuditEntry, ExternalIdTaken, NoSuchTenant, Tenant, TenantFields
from api.adapters.database_sql import WRITES
from api.adapters.keys_sql import SqlKeys
from api.adapters.limits_sql import COLUMNS, merged, merged_columns
from api.adapters.tables_sql import api_keys, audit_log, revoked_tokens, tenants, users
from api.core.ids import ENTROPY_BYTES, sortable_id
from api.ports import AccountsUnavailable
from auth.memory import REVOKED_SECONDS, token_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.accounts import Actor
    from api.ports import Clock


_PATIENCE_SECONDS = 2.0
"""How long a caller waits for the database to say who it is."""


class Book:
    """The engine, opened for reading or for a change; what is written goes into the audit log too."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self.clock = clock
        self._engine = engine

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading, for two seconds at most. Raises AccountsUnavailable."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS), self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. Raises AccountsUnavailable; and IntegrityError, which is for the caller to name."""
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(**WRITES)
                async with connection.begin():
                    yield connection
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error

    async def note(
        self,
        connection: AsyncConnection,
        action: str,
        target: str,
        *,
        by: Actor,
        tenant_id: str | None = None,
        **details: Any,
    ) -> None:
        """Append to the audit log. An action is named `kind.verb`; no secret is ever among the details."""
        row = {
            "at": self.clock.now(),
            "actor": by.name[:400],
            "address": by.address[:64],
            "request_id": by.request_id[:128],
            "action": action,
            "tenant_id": tenant_id,
            "kind": action.partition(".")[0],
            "target": target[:400],
            "details": details,
        }
        await connection.execute(insert(audit_log).values(row))


class SqlAccounts:
    """Reads and changes accounts."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._book = Book(engine, clock)

    def keys(self, tenant_id: str | None) -> SqlKeys:
        """The keys of one tenant, or for an admin (None) of all."""
        return SqlKeys(self._book, tenant_id)

    # --- tenants --------------------------------------------------------------------------------

    async def create_tenant(self, fields: TenantFields, *, by: Actor) -> Tenant:
        """A new tenant. Raises ExternalIdTaken."""
        now = self._book.clock.now()
        tenant_id = sortable_id("tn_", int(now.timestamp() * 1000), secrets.token_bytes(ENTROPY_BYTES))
        values = {name: getattr(fields, name) for name in _TENANT_FIELDS}
        values |= {name: merged({}, values[name]) for name in COLUMNS}
        try:
            async with self._book.writing() as connection:
                row = {"id": tenant_id, "active": True, "created_at": now, **values}
                await connection.execute(insert(tenants).values(row))
                await self._book.note(
                    connection, "tenant.create", tenant_id, by=by, tenant_id=tenant_id, **values
                )
        except IntegrityError:
            if fields.external_id is None:
                raise
            raise ExternalIdTaken(fields.external_id) from None
        return Tenant(**values, id=tenant_id, state="active", created_at=now)

    async def tenants(self, *, deleted: bool = False) -> list[Tenant]:
        """All tenants, oldest first."""
        query = select(tenants).order_by(tenants.c.id)
        if not deleted:
            query = query.where(tenants.c.deleted_at.is_(None))
        async with self._book.reading() as connection:
            return [_tenant(row) for row in (await connection.execute(query)).mappings()]

    async def tenant(self, tenant_id: str) -> Tenant:
        """One tenant. Raises NoSuchTenant."""
        async with self._book.reading() as connection:
            query = select(tenants).where(tenants.c.id == tenant_id)
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NoSuchTenant(tenant_id)
        return _tenant(row)

    async def change_tenant(self, tenant_id: str, changes: Mapping[str, Any], *, by: Actor) -> Tenant:
        """Set some of TenantFields; limits are merged. Raises NoSuchTenant, ExternalIdTaken."""
        external_id = changes.get("external_id")
        try:
            return await self._set(tenant_id, "tenant.change", dict(changes), by=by, **changes)
        except IntegrityError:
            if external_id is None:
                raise
            raise ExternalIdTaken(external_id) from None

    async def suspend(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Nobody of the tenant gets in any more. Raises NoSuchTenant."""
        return await self._set(tenant_id, "tenant.suspend", {"active": False}, by=by)

    async def resume(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Undo `suspend`. Raises NoSuchTenant."""
        return await self._set(tenant_id, "tenant.resume", {"active": True}, by=by)

    async def delete(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Suspend for ever, and revoke all keys. Raises NoSuchTenant."""
        values = {"active": False, "deleted_at": self._book.clock.now()}
        return await self._set(tenant_id, "tenant.delete", values, by=by)

    async def _set(
        self, tenant_id: str, action: str, values: dict[str, Any], *, by: Actor, **details: Any
    ) -> Tenant:
        query = select(tenants).where(tenants.c.id == tenant_id, tenants.c.deleted_at.is_(None))
        async with self._book.writing() as connection:
            row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
            if row is None:
                raise NoSuchTenant(tenant_id)
            values = merged_columns(row, values)
            if values:
                await connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(values))
                await self._book.note(connection, action, tenant_id, by=by, tenant_id=tenant_id, **details)
            if "deleted_at" in values:
                await _revoke_all(connection, tenant_id, values["deleted_at"])
        return _tenant({**row, **values})

    # --- tokens and admins ----------------------------------------------------------------------

    async def revoke_token(self, tenant_id: str | None, token_id: str, *, by: Actor) -> None:
        """Revoke a token of that tenant (None: of an admin), whether or not there is one."""
        tenant = tenant_id or ""
        now = self._book.clock.now()
        row = {"tenant_id": tenant, "token_id": token_id, "revoked_at": now}
        ended = revoked_tokens.c.revoked_at < now - timedelta(seconds=REVOKED_SECONDS)
        async with self._book.writing() as connection:
            await connection.execute(delete(revoked_tokens).where(ended))
            await _put(connection, revoked_tokens, row)
            name = token_name(tenant_id, token_id)
            await self._book.note(connection, "token.revoke", name, by=by, tenant_id=tenant_id)

    async def admins(self) -> list[str]:
        """The admins' addresses."""
        async with self._book.reading() as connection:
            return list((await connection.execute(select(users.c.email).order_by(users.c.email))).scalars())

    async def put_admin(self, email: str, password_hash: str, *, by: Actor) -> None:
        """Create an admin, or change the password."""
        email = email.casefold()
        row = {"email": email, "password_hash": password_hash}
        async with self._book.writing() as connection:
            await _put(connection, users, row)
            await self._book.note(connection, "user.put", email, by=by)

    async def remove_admin(self, email: str, *, by: Actor) -> bool:
        """Remove an admin; False if there is none of that address."""
        email = email.casefold()
        async with self._book.writing() as connection:
            done = await connection.execute(delete(users).where(users.c.email == email))
            if done.rowcount:
                await self._book.note(connection, "user.remove", email, by=by)
        return bool(done.rowcount)

    async def used(self, times: Mapping[str, datetime]) -> None:
        """Write when keys were last used; in the order of their ids, so that two workers cannot lock up."""
        if not times:
            return
        last = api_keys.c.last_used_at
        older = (api_keys.c.id == bindparam("key"), or_(last.is_(None), last < bindparam("at")))
        rows = [{"key": key_id, "at": at} for key_id, at in sorted(times.items())]
        async with self._book.writing() as connection:
            await connection.execute(
                update(api_keys).where(*older).values(last_used_at=bindparam("at")), rows
            )

    # --- the audit log --------------------------------------------------------------------------

    async def note(
        self, action: str, kind: str, target: str, *, by: Actor, tenant_id: str | None = None
    ) -> None:
        """Write an audit entry of something that changes nothing, such as a sign-in."""
        async with self._book.writing() as connection:
            await self._book.note(connection, f"{kind}.{action}", target, by=by, tenant_id=tenant_id)

    async def audit(
        self,
        *,
        tenant_id: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """The audit log, newest first."""
        wanted = {"tenant_id": tenant_id, "actor": actor, "action": action}
        query = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
        query = query.where(*(audit_log.c[name] == value for name, value in wanted.items() if value))
        if before is not None:
            query = query.where(audit_log.c.id < before)
        async with self._book.reading() as connection:
            return [AuditEntry(**row) for row in (await connection.execute(query)).mappings()]


_TENANT_FIELDS = tuple(field.name for field in fields_of(TenantFields))


async def _put(connection: AsyncConnection, table: Table, row: dict[str, Any]) -> None:
    """Insert a row, or change the one that has its primary key."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insertion = dialect.insert(table).values(row)
    key = [column.name for column in table.primary_key]
    rest = {name: value for name, value in row.items() if name not in key}
    await connection.execute(insertion.on_conflict_do_update(index_elements=key, set_=rest))


async def _revoke_all(connection: AsyncConnection, tenant_id: str, at: datetime) -> None:
    """Revoke a tenant's keys; locked in the order of their ids, as `used` writes them."""
    theirs = (api_keys.c.tenant_id == tenant_id, api_keys.c.revoked_at.is_(None))
    await connection.execute(select(api_keys.c.id).where(*theirs).order_by(api_keys.c.id).with_for_update())
    await connection.execute(update(api_keys).where(*theirs).values(revoked_at=at))


def _tenant(row: Mapping[Any, Any]) -> Tenant:
    state = "active" if row["active"] else "suspended"
    return Tenant(
        **{name: row[name] for name in _TENANT_FIELDS},
        id=row["id"],
        state="deleted" if row["deleted_at"] is not None else state,
        created_at=row["created_at"],
    )
