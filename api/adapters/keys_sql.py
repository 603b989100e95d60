"""API keys on SQL.

A tenant's own view adds its id to every statement, so others' keys are not there (P10); nor are keys with
the scope `admin`: whoever could give one of those a new secret would have the gateway.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, literal, not_, select, update

from api.accounts import KeyInfo, NoSuchKey, NoSuchTenant
from api.adapters.limits_sql import merged, merged_columns
from api.adapters.tables_sql import api_keys, tenants
from auth import keys
from auth.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement, RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from api.accounts import Actor, KeyFields
    from api.adapters.accounts_sql import Book


class SqlKeys:
    """The keys of `tenant_id`, or of all tenants where it is None."""

    def __init__(self, book: Book, tenant_id: str | None) -> None:
        self._book = book
        self._mine: tuple[ColumnElement[bool], ...] = ()
        if tenant_id is not None:
            gateways = (literal(" ") + api_keys.c.scopes + " ").contains(f" {Scope.ADMIN} ")
            self._mine = (api_keys.c.tenant_id == tenant_id, not_(gateways))

    async def issue(self, tenant_id: str, fields: KeyFields, *, by: Actor) -> tuple[KeyInfo, str]:
        """A new key, and its text, which cannot be had again. Raises NoSuchTenant."""
        key = keys.mint()
        values = _values(fields)
        row = {
            "id": key.id,
            "tenant_id": tenant_id,
            "secret_sha256": key.sha256,
            "created_at": self._book.clock.now(),
            "created_by": by.name[:400],
            **values,
        }
        async with self._book.writing() as connection:
            await _present(connection, tenant_id)
            await connection.execute(insert(api_keys).values(row))
            info = await self._row(connection, key.id)
            await self._note(connection, "key.issue", info, by=by, **_plain(values))
        return _info(info), key.text

    async def all_of(self, tenant_id: str) -> list[KeyInfo]:
        """A tenant's keys, oldest first. Raises NoSuchTenant."""
        query = (
            select(api_keys)
            .where(api_keys.c.tenant_id == tenant_id, *self._mine)
            .order_by(api_keys.c.created_at, api_keys.c.id)
        )
        async with self._book.reading() as connection:
            found = (await connection.execute(query)).mappings().all()
            if not found and await connection.scalar(_tenant(tenant_id)) is None:
                raise NoSuchTenant(tenant_id)
        return [_info(row) for row in found]

    async def get(self, key_id: str) -> KeyInfo:
        """One key. Raises NoSuchKey."""
        async with self._book.reading() as connection:
            return _info(await self._row(connection, key_id))

    async def change(self, key_id: str, changes: Mapping[str, Any], *, by: Actor) -> KeyInfo:
        """Set some of KeyFields; limits are merged. Raises NoSuchKey."""
        values = _columns(changes)
        async with self._book.writing() as connection:
            row = await self._row(connection, key_id, lock=True)
            if values:
                row = await self._set(connection, key_id, merged_columns(row, values))
                await self._note(connection, "key.change", row, by=by, **_plain(values))
        return _info(row)

    async def rotate(self, key_id: str, *, grace_seconds: int, by: Actor) -> tuple[KeyInfo, str]:
        """A new secret; the one before holds for `grace_seconds` more. Raises NoSuchKey: also if revoked."""
        key = keys.mint(key_id)
        until = self._book.clock.now() + timedelta(seconds=grace_seconds)
        async with self._book.writing() as connection:
            row = await self._row(connection, key_id, lock=True)
            if row["revoked_at"] is not None:
                raise NoSuchKey(key_id)
            values = {
                "secret_sha256": key.sha256,
                "previous_sha256": row["secret_sha256"] if grace_seconds else None,
                "previous_until": until if grace_seconds else None,
            }
            row = await self._set(connection, key_id, values)
            await self._note(connection, "key.rotate", row, by=by, grace_seconds=grace_seconds)
        return _info(row), key.text

    async def revoke(self, key_id: str, *, by: Actor) -> KeyInfo:
        """Revoke a key. The first revocation's time stands. Raises NoSuchKey."""
        async with self._book.writing() as connection:
            row = await self._row(connection, key_id, lock=True)
            if row["revoked_at"] is None:
                row = await self._set(connection, key_id, {"revoked_at": self._book.clock.now()})
                await self._note(connection, "key.revoke", row, by=by)
        return _info(row)

    async def _row(self, connection: AsyncConnection, key_id: str, *, lock: bool = False) -> RowMapping:
        query = select(api_keys).where(api_keys.c.id == key_id, *self._mine)
        query = query.with_for_update() if lock else query
        row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NoSuchKey(key_id)
        return row

    async def _set(self, connection: AsyncConnection, key_id: str, values: Mapping[str, Any]) -> RowMapping:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id, *self._mine).values(values))
        return await self._row(connection, key_id)

    async def _note(
        self, connection: AsyncConnection, action: str, row: RowMapping, *, by: Actor, **details: Any
    ) -> None:
        await self._book.note(connection, action, row["id"], by=by, tenant_id=row["tenant_id"], **details)


async def _present(connection: AsyncConnection, tenant_id: str) -> None:
    """Raises NoSuchTenant where there is none, or none any more."""
    present = _tenant(tenant_id).where(tenants.c.deleted_at.is_(None))
    if await connection.scalar(present.with_for_update(read=True)) is None:  # deleting it waits for this
        raise NoSuchTenant(tenant_id)


def _tenant(tenant_id: str) -> Any:
    return select(tenants.c.id).where(tenants.c.id == tenant_id)


_FIELDS = ("name", "scopes", "models", "max_streams", "allowed_addresses", "expires_at", "limits")


def _values(fields: KeyFields) -> dict[str, Any]:
    return _columns({name: getattr(fields, name) for name in _FIELDS} | {"limits": merged({}, fields.limits)})


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a key as its row holds them."""
    row = dict(values)
    if "scopes" in row:
        row["scopes"] = " ".join(sorted(row["scopes"]))
    for name in ("models", "allowed_addresses"):
        if row.get(name) is not None:
            row[name] = list(row[name])
    return row


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a row as JSON can hold them."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()
    }


def _info(row: RowMapping) -> KeyInfo:
    shown = ("id", "tenant_id", "name", "max_streams", "limits", "expires_at", "created_at", "created_by")
    times = ("last_used_at", "previous_until", "revoked_at")
    return KeyInfo(
        **{name: row[name] for name in (*shown, *times)},
        scopes=tuple(Scope(word) for word in row["scopes"].split()),
        models=None if row["models"] is None else tuple(row["models"]),
        allowed_addresses=tuple(row["allowed_addresses"]),
    )
