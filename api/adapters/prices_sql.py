"""The price list and the tenants' markups on SQL: versions that are added and never change.

Whoever adds one locks the table until it has committed, so versions ascend in the order in which they come to
stand there. Readers wait for nobody.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from api.accounts import NoSuchTenant
from api.adapters.accounts_sql import Book
from api.adapters.tables_sql import markups, prices, tenants
from api.core.money import Markup, Prices, PriceVersion
from api.ports import AccountsUnavailable
from api.pricing import Imported, KeptMarkup, KeptPrice, PriceChange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Select, Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.accounts import Actor
    from api.core.money import Price
    from api.ports import Clock

_AMOUNTS = ("input", "cached_input", "output", "reasoning")
_PAGE = 1000
"""So many versions are read at once, so that no stream waits long for a long list."""

_NAMED = 20
"""So many models of an import stand in the audit log by name."""


class SqlPrices:
    """What models cost, and tenants pay on top."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._book = Book(engine, clock)

    async def load(self) -> Prices:
        """All versions. Raises AccountsUnavailable."""
        async with self._reading() as connection:
            return Prices(
                [PriceVersion(*row) for row in await _all(connection, prices, PriceVersion)],
                [Markup(*row) for row in await _all(connection, markups, Markup)],
            )

    async def listed(
        self,
        *,
        model: str | None = None,
        at: datetime | None = None,
        after: str = "",
        limit: int = _PAGE,
    ) -> list[KeptPrice]:
        """What holds at a moment (None: now), by name; of a `model` what fits it, the best last."""
        query = _holding(self._book.clock.now() if at is None else at)
        query = query.where(query.selected_columns.model > after).limit(limit)
        if model is not None:
            query = query.where(query.selected_columns.model.in_(_fitting(model)))
        async with self._reading() as connection:
            found = [KeptPrice(**row) for row in (await connection.execute(query)).mappings()]
        return found if model is None else sorted(found, key=lambda row: (row.model == model, len(row.model)))

    async def history(
        self, *, model: str | None = None, before: int | None = None, limit: int = _PAGE
    ) -> list[KeptPrice]:
        """All versions, newest first."""
        query = _newest_first(prices, before, limit)
        if model is not None:
            query = query.where(prices.c.model.in_(_fitting(model)))
        async with self._reading() as connection:
            return [KeptPrice(**row) for row in (await connection.execute(query)).mappings()]

    async def import_prices(
        self, prices: Mapping[str, Price], valid_from: datetime | None, *, by: Actor, dry_run: bool = False
    ) -> Imported:
        """Add a version of each price that is not the one that holds at `valid_from` (None: now)."""
        if dry_run:
            async with self._reading() as connection:
                return await self._missing(connection, prices, valid_from or self._book.clock.now())
        async with self._adding("prices") as connection:
            missing = await self._missing(connection, prices, valid_from or self._book.clock.now())
            if not missing.changes:
                return missing
            versions = await self._add(connection, missing, by)
            added = zip(missing.changes, versions, strict=True)
            return missing._replace(changes=tuple(one._replace(version=version) for one, version in added))

    async def _missing(
        self, connection: AsyncConnection, wanted: Mapping[str, Price], at: datetime
    ) -> Imported:
        rows = await connection.execute(_holding(at))
        holding = {row["model"]: row for row in rows.mappings() if row["model"] in wanted}
        changes = tuple(
            PriceChange(model, None, _version(holding[model]) if model in holding else None, price)
            for model, price in sorted(wanted.items())
            if model not in holding or _amounts(price) != {name: holding[model][name] for name in _AMOUNTS}
        )
        return Imported(at, changes, len(wanted) - len(changes))

    async def _add(self, connection: AsyncConnection, missing: Imported, by: Actor) -> list[int]:
        same = {
            "valid_from": missing.valid_from,
            "created_at": self._book.clock.now(),
            "created_by": by.name[:400],
        }
        rows = [{"model": one.model, **_amounts(one.after), **same} for one in missing.changes]
        adding = insert(prices).returning(prices.c.version, sort_by_parameter_order=True)
        versions = list((await connection.execute(adding, rows)).scalars())
        models = [one.model for one in missing.changes]
        await self._book.note(
            connection,
            "price.import",
            models[0] if len(models) == 1 else f"{len(models)} models",
            by=by,
            valid_from=missing.valid_from.isoformat(),
            versions=[versions[0], versions[-1]],
            models=models[:_NAMED] + ["..."] * (len(models) > _NAMED),
        )
        return versions

    async def markups(
        self, tenant_id: str | None = None, *, before: int | None = None, limit: int = _PAGE
    ) -> list[KeptMarkup]:
        """All tenants' markups, or one's, newest first."""
        query = _newest_first(markups, before, limit)
        if tenant_id is not None:
            query = query.where(markups.c.tenant_id == tenant_id)
        async with self._reading() as connection:
            return [KeptMarkup(**row) for row in (await connection.execute(query)).mappings()]

    async def set_markup(
        self, tenant_id: str, basis_points: int, valid_from: datetime | None, *, by: Actor
    ) -> KeptMarkup:
        """The tenant's markup from then on (None: now); the same again adds nothing. Raises NoSuchTenant."""
        async with self._adding("markups") as connection:
            if await connection.scalar(select(tenants.c.id).where(tenants.c.id == tenant_id)) is None:
                raise NoSuchTenant(tenant_id)
            now = self._book.clock.now()
            at = valid_from or now
            holding = await self._markup(connection, tenant_id, at)
            if holding is not None and holding.basis_points == basis_points:
                return holding
            row: dict[str, Any] = {
                "tenant_id": tenant_id,
                "valid_from": at,
                "basis_points": basis_points,
                "created_at": now,
                "created_by": by.name[:400],
            }
            adding = insert(markups).values(row).returning(markups.c.version)
            row["version"] = version = (await connection.execute(adding)).scalar_one()
            details = {"basis_points": basis_points, "valid_from": at.isoformat(), "version": version}
            await self._book.note(
                connection, "price.markup", tenant_id, by=by, tenant_id=tenant_id, **details
            )
        return KeptMarkup(**row)

    async def _markup(self, connection: AsyncConnection, tenant_id: str, at: datetime) -> KeptMarkup | None:
        query = (
            select(markups)
            .where(markups.c.tenant_id == tenant_id, markups.c.valid_from <= at)
            .order_by(markups.c.valid_from.desc(), markups.c.version.desc())
            .limit(1)
        )
        row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else KeptMarkup(**row)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading, without the haste of whoever waits to be let in."""
        try:
            async with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error

    @asynccontextmanager
    async def _adding(self, table: str) -> AsyncIterator[AsyncConnection]:
        """A transaction in which nobody else adds to the table."""
        async with self._book.writing() as connection:
            if connection.dialect.name != "sqlite":  # there, whoever writes is alone anyway
                await connection.execute(text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
            yield connection


async def _all(
    connection: AsyncConnection, table: Table, of: type[PriceVersion | Markup]
) -> list[Sequence[Any]]:
    """All rows of a table, with the fields of that value. They are only added to, so pages fit together."""
    columns = [table.c[name] for name in of.__dataclass_fields__]
    found: list[Sequence[Any]] = []
    while True:
        last = found[-1][0] if found else 0
        query = select(*columns).where(table.c.version > last).order_by(table.c.version).limit(_PAGE)
        page = (await connection.execute(query)).all()
        found += page
        if len(page) < _PAGE:
            return found


def _holding(at: datetime) -> Select[Any]:
    """Each name's version that holds at a moment, by name."""
    last = (prices.c.valid_from.desc(), prices.c.version.desc())
    place = func.row_number().over(partition_by=prices.c.model, order_by=last).label("place")
    ranked = select(prices, place).where(prices.c.valid_from <= at).subquery()
    rows = select(*(ranked.c[column.name] for column in prices.c))
    return rows.where(ranked.c.place == 1).order_by(ranked.c.model)


def _newest_first(table: Table, before: int | None, limit: int) -> Select[Any]:
    query = select(table).order_by(table.c.version.desc()).limit(limit)
    return query if before is None else query.where(table.c.version < before)


def _fitting(model: str) -> Iterable[str]:
    """The names under which a model's price may stand: its own, and its beginnings with a `*`."""
    return [model, *(f"{model[:length]}*" for length in range(len(model) + 1))]


def _amounts(price: Price) -> dict[str, int]:
    return {name: getattr(price, name) for name in _AMOUNTS}


def _version(row: Any) -> PriceVersion:
    return PriceVersion(**{name: row[name] for name in PriceVersion.__dataclass_fields__})
