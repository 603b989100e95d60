"""Models, upstreams and tenants' own keys on SQL. Keys are sealed for the very row that they stand in."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from api.accounts import NoSuchTenant
from api.adapters.accounts_sql import Book
from api.adapters.sealer_aesgcm import CannotOpen
from api.adapters.tables_sql import models, provider_keys, tenants, upstreams
from api.cataloging import (
    CatalogChange,
    KeptKey,
    KeptModel,
    KeptUpstream,
    NoSuchEntry,
    NoSuchUpstream,
    UpstreamInUse,
)
from api.core.catalog import Catalog, ModelSpec, ProviderKey, UpstreamSpec, taken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.accounts import Actor
    from api.adapters.sealer_aesgcm import Sealer
    from api.cataloging import CatalogFile
    from api.ports import Clock

log = logging.getLogger("sluicegate.catalog")

_HINT = 4  # characters of a key that may be shown; of a short one none


class SqlCatalog:
    """What an admin has said of models. Raises AccountsUnavailable where the database is away."""

    def __init__(self, engine: AsyncEngine, clock: Clock, sealer: Sealer) -> None:
        self._book = Book(engine, clock)
        self._sealer = sealer

    async def load(self) -> Catalog:
        """All entries; a key that cannot be opened is as if it were not there, and the log says so."""
        async with self._book.reading() as connection:
            rows = {
                table: (await connection.execute(select(table))).mappings().all()
                for table in (upstreams, models, provider_keys)
            }
        secrets = {row["name"]: self._opened(row, row["name"]) for row in rows[upstreams] if row["secret"]}
        keys = [
            ProviderKey(row["tenant_id"], row["upstream"], opened)
            for row in rows[provider_keys]
            if (opened := self._opened(row, f"{row['tenant_id']} {row['upstream']}")) is not None
        ]
        return Catalog(
            [_upstream(row) for row in rows[upstreams]],
            [_model(row) for row in rows[models]],
            keys,
            {name: secret for name, secret in secrets.items() if secret is not None},
        )

    def _opened(self, row: Any, belongs_to: str) -> str | None:
        try:
            return self._sealer.open(row["secret"], belongs_to)
        except CannotOpen as error:
            log.error("a provider's key cannot be used: %s", error)  # noqa: TRY400 - no secret in a trace
            return None

    # --- reading --------------------------------------------------------------------------------

    async def upstreams(self) -> list[KeptUpstream]:
        """By name."""
        async with self._book.reading() as connection:
            rows = (await connection.execute(select(upstreams).order_by(upstreams.c.name))).mappings()
            return [_kept_upstream(row) for row in rows]

    async def models(self, tenant_id: str | None = None) -> list[KeptModel]:
        """By name, those for all before those of tenants."""
        query = select(models).order_by(models.c.name, models.c.tenant_id)
        if tenant_id is not None:
            query = query.where(models.c.tenant_id == tenant_id)
        async with self._book.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return [KeptModel(_model(row), row["updated_at"], row["updated_by"]) for row in rows]

    async def provider_keys(self, tenant_id: str) -> list[KeptKey]:
        """By upstream. Raises NoSuchTenant."""
        query = select(provider_keys).where(provider_keys.c.tenant_id == tenant_id)
        async with self._book.reading() as connection:
            await _check_tenant(connection, tenant_id)
            rows = (await connection.execute(query.order_by(provider_keys.c.upstream))).mappings()
            return [_kept_key(row) for row in rows]

    # --- writing --------------------------------------------------------------------------------

    async def put_upstream(self, spec: UpstreamSpec, api_key: str | None, *, by: Actor) -> KeptUpstream:
        """Add or replace."""
        async with self._book.writing() as connection:
            return await self._put_upstream(connection, spec, api_key, by)

    async def _put_upstream(
        self, connection: AsyncConnection, spec: UpstreamSpec, api_key: str | None, by: Actor
    ) -> KeptUpstream:
        row: dict[str, Any] = {"name": spec.name, "spec": asdict(spec), "secret": None, "key_hint": None}
        if api_key is not None:
            row |= {"secret": self._sealer.seal(api_key, spec.name), "key_hint": _hint(api_key)}
        else:
            same = select(upstreams.c.secret, upstreams.c.key_hint).where(upstreams.c.name == spec.name)
            row |= dict((await connection.execute(same)).mappings().first() or {})
        row |= await self._replaced(connection, upstreams, {"name": spec.name}, row, by)
        details: dict[str, Any] = {
            "upstream": spec.kind,
            "base_url": spec.base_url,
            "new_key": api_key is not None,
        }
        await self._book.note(connection, "catalog.put_upstream", spec.name, by=by, **details)
        return _kept_upstream(row)

    async def remove_upstream(self, name: str, *, by: Actor) -> None:
        """Raises NoSuchUpstream, UpstreamInUse."""
        async with self._book.writing() as connection:
            await self._remove_upstream(connection, name, by)

    async def _remove_upstream(self, connection: AsyncConnection, name: str, by: Actor) -> None:
        for row in (await connection.execute(select(models))).mappings():
            if any(target.upstream == name for target in _model(row).targets):
                raise UpstreamInUse(name, row["name"])
        if not (await connection.execute(delete(upstreams).where(upstreams.c.name == name))).rowcount:
            raise NoSuchUpstream(name)
        await self._book.note(connection, "catalog.remove_upstream", name, by=by)

    async def put_model(self, spec: ModelSpec, *, by: Actor, known: frozenset[str]) -> KeptModel:
        """Add or replace. Raises NoSuchUpstream, NoSuchTenant."""
        async with self._book.writing() as connection:
            return await self._put_model(connection, spec, by, known)

    async def _put_model(
        self, connection: AsyncConnection, spec: ModelSpec, by: Actor, known: frozenset[str]
    ) -> KeptModel:
        if spec.tenant_id:
            await _check_tenant(connection, spec.tenant_id)
        there = known | set((await connection.execute(select(upstreams.c.name))).scalars())
        for target in spec.targets:
            if target.upstream not in there:
                raise NoSuchUpstream(target.upstream)
        keys = {"tenant_id": spec.tenant_id, "name": spec.name}
        row = await self._replaced(connection, models, keys, {**keys, "spec": asdict(spec)}, by)
        targets = [f"{target.upstream}/{target.model or spec.name}" for target in spec.targets]
        about: dict[str, Any] = {"tenant_id": spec.tenant_id or None, "targets": targets}
        await self._book.note(connection, "catalog.put_model", spec.name, by=by, **about)
        return KeptModel(spec, row["updated_at"], row["updated_by"])

    async def remove_model(self, name: str, tenant_id: str, *, by: Actor) -> None:
        """Raises NoSuchEntry."""
        async with self._book.writing() as connection:
            await self._remove_model(connection, name, tenant_id, by)

    async def _remove_model(self, connection: AsyncConnection, name: str, tenant_id: str, by: Actor) -> None:
        gone = delete(models).where(models.c.name == name, models.c.tenant_id == tenant_id)
        if not (await connection.execute(gone)).rowcount:
            raise NoSuchEntry(f"There is no model `{name}`.")
        await self._book.note(connection, "catalog.remove_model", name, by=by, tenant_id=tenant_id or None)

    async def put_key(self, tenant_id: str, upstream: str, api_key: str, *, by: Actor) -> KeptKey:
        """Add or replace. Raises NoSuchTenant."""
        keys = {"tenant_id": tenant_id, "upstream": upstream}
        sealed = self._sealer.seal(api_key, f"{tenant_id} {upstream}")
        row: dict[str, Any] = {**keys, "secret": sealed, "key_hint": _hint(api_key)}
        async with self._book.writing() as connection:
            await _check_tenant(connection, tenant_id)
            row |= await self._replaced(connection, provider_keys, keys, row, by)
            await self._book.note(connection, "catalog.put_key", upstream, by=by, tenant_id=tenant_id)
        return _kept_key(row)

    async def remove_key(self, tenant_id: str, upstream: str, *, by: Actor) -> None:
        """Raises NoSuchTenant, NoSuchEntry."""
        table = provider_keys.c
        async with self._book.writing() as connection:
            await _check_tenant(connection, tenant_id)
            gone = delete(provider_keys).where(table.tenant_id == tenant_id, table.upstream == upstream)
            if not (await connection.execute(gone)).rowcount:
                raise NoSuchEntry(f"The tenant has no key of its own at `{upstream}`.")
            await self._book.note(connection, "catalog.remove_key", upstream, by=by, tenant_id=tenant_id)

    async def import_file(
        self,
        file: CatalogFile,
        *,
        by: Actor,
        known: frozenset[str],
        prune: bool = False,
        dry_run: bool = False,
    ) -> list[CatalogChange]:
        """All of it, or nothing. An entry that is as it should be is left alone, but for its key."""
        there = {kept.spec.name: kept.spec for kept in await self.upstreams()}
        offered = {(kept.spec.tenant_id, kept.spec.name): kept.spec for kept in await self.models()}
        wanted = {(spec.tenant_id, spec.name): spec for spec in file.models}
        changes = [
            CatalogChange("change" if spec.name in there else "add", "upstream", spec.name)
            for spec in file.upstreams
            if there.get(spec.name) != spec or spec.name in file.secrets
        ]
        changes += [
            CatalogChange("change" if key in offered else "add", "model", spec.name)
            for key, spec in wanted.items()
            if offered.get(key) != spec
        ]
        gone_models = sorted(offered.keys() - wanted.keys()) if prune else []
        gone = sorted(there.keys() - {spec.name for spec in file.upstreams}) if prune else []
        changes += [CatalogChange("remove", "model", name) for _, name in gone_models]
        changes += [CatalogChange("remove", "upstream", name) for name in gone]
        if dry_run or not changes:
            return changes
        async with self._book.writing() as connection:
            for spec in file.upstreams:
                if there.get(spec.name) != spec or spec.name in file.secrets:
                    await self._put_upstream(connection, spec, file.secrets.get(spec.name), by)
            for key, model in wanted.items():
                if offered.get(key) != model:
                    await self._put_model(connection, model, by, known)
            for tenant_id, name in gone_models:
                await self._remove_model(connection, name, tenant_id, by)
            for name in gone:
                await self._remove_upstream(connection, name, by)
        return changes

    async def reseal(self, *, by: Actor) -> int:
        """Seal anew what is under an older secret. Raises CannotOpen: then nothing was changed."""
        resealed = 0
        async with self._book.writing() as connection:
            for table, names in ((upstreams, ("name",)), (provider_keys, ("tenant_id", "upstream"))):
                for row in (await connection.execute(select(table))).mappings().all():
                    if row["secret"] is None or self._sealer.is_present(row["secret"]):
                        continue
                    belongs_to = " ".join(row[name] for name in names)
                    fresh = self._sealer.seal(self._sealer.open(row["secret"], belongs_to), belongs_to)
                    same = [table.c[name] == row[name] for name in names]
                    await connection.execute(table.update().where(*same).values(secret=fresh))
                    resealed += 1
            if resealed:
                await self._book.note(connection, "catalog.reseal", f"{resealed} keys", by=by)
        return resealed

    async def _replaced(
        self,
        connection: AsyncConnection,
        table: Table,
        keys: Mapping[str, str],
        row: Mapping[str, Any],
        by: Actor,
    ) -> dict[str, Any]:
        """Write a row in the place of the one with these keys; returns it whole."""
        whole = {**row, "updated_at": self._book.clock.now(), "updated_by": by.name[:400]}
        await connection.execute(delete(table).where(*(table.c[name] == key for name, key in keys.items())))
        await connection.execute(insert(table).values(whole))
        return whole


async def _check_tenant(connection: AsyncConnection, tenant_id: str) -> None:
    if await connection.scalar(select(tenants.c.id).where(tenants.c.id == tenant_id)) is None:
        raise NoSuchTenant(tenant_id)


def _upstream(row: Any) -> UpstreamSpec:
    spec: UpstreamSpec = taken(UpstreamSpec, row["spec"])
    return spec


def _model(row: Any) -> ModelSpec:
    spec: ModelSpec = taken(ModelSpec, row["spec"])
    return spec


def _kept_upstream(row: Any) -> KeptUpstream:
    spec: UpstreamSpec = taken(UpstreamSpec, row["spec"])
    return KeptUpstream(spec, row["key_hint"], row["updated_at"], row["updated_by"])


def _kept_key(row: Any) -> KeptKey:
    return KeptKey(*(row[name] for name in ("tenant_id", "upstream", "key_hint", "updated_at", "updated_by")))


def _hint(api_key: str) -> str:
    return api_key[-_HINT:] if len(api_key) >= 4 * _HINT else ""
