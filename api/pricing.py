"""The price list and the tenants' markups as they are kept: the values, and the port to them.

Nothing of either is ever changed: a new version takes over from its `valid_from` on, and stands in the audit
log, written in the same transaction. Workers read the list anew when the feed of changes tells of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from api.core.money import Markup, PriceVersion

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from api.accounts import Actor
    from api.core.money import Price, Prices


@dataclass(frozen=True, slots=True)
class KeptPrice(PriceVersion):
    """A row of the price list, and who put it there."""

    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class KeptMarkup(Markup):
    """A tenant's markup, and who decided it."""

    created_at: datetime
    created_by: str


class PriceChange(NamedTuple):
    """What an import changes of a model. `before` is None for a new one, `version` if it was only tried."""

    model: str
    version: int | None
    before: PriceVersion | None
    after: Price


class Imported(NamedTuple):
    """What an import did; prices that hold already by `valid_from` are not added again."""

    valid_from: datetime
    changes: tuple[PriceChange, ...]
    unchanged: int


class PriceBook(Protocol):
    """All versions of prices and markups. Raises AccountsUnavailable where the database is away."""

    async def load(self) -> Prices:
        """All that is needed to price a request, now or later."""
        ...

    async def listed(
        self,
        *,
        model: str | None = None,
        at: datetime | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> list[KeptPrice]:
        """What holds at a moment (None: now), the next `limit` by name behind the name `after`.

        Of a `model` those alone under which it may stand; the last of them is what it costs.
        """
        ...

    async def history(
        self, *, model: str | None = None, before: int | None = None, limit: int = 1000
    ) -> list[KeptPrice]:
        """All versions, newest first, the next `limit` before number `before`."""
        ...

    async def import_prices(
        self, prices: Mapping[str, Price], valid_from: datetime | None, *, by: Actor, dry_run: bool = False
    ) -> Imported:
        """Add a version of each price that is not the one that holds at `valid_from` (None: now)."""
        ...

    async def markups(
        self, tenant_id: str | None = None, *, before: int | None = None, limit: int = 1000
    ) -> list[KeptMarkup]:
        """All tenants' markups, or one's, newest first, the next `limit` before number `before`."""
        ...

    async def set_markup(
        self, tenant_id: str, basis_points: int, valid_from: datetime | None, *, by: Actor
    ) -> KeptMarkup:
        """The tenant's markup from then on (None: now); the same again adds nothing. Raises NoSuchTenant."""
        ...
