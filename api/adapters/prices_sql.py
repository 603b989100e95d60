"""The price list and the tenants' markups on SQL: versions that are added and never change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from api.adapters import tables_sql
from api.core.money import Markup, Prices, PriceVersion
from api.ports import AccountsUnavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class SqlPrices:
    """What models cost, and tenants pay on top."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def load(self) -> Prices:
        """All versions. Raises AccountsUnavailable."""
        try:
            async with self._engine.connect() as connection:
                prices = (await connection.execute(select(tables_sql.prices))).mappings().all()
                markups = (await connection.execute(select(tables_sql.markups))).mappings().all()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise AccountsUnavailable(type(error).__name__) from error
        return Prices(
            [
                PriceVersion(**{name: row[name] for name in PriceVersion.__dataclass_fields__})
                for row in prices
            ],
            [Markup(**{name: row[name] for name in Markup.__dataclass_fields__}) for row in markups],
        )
