"""What a worker remembers of keys, tenants and users, so that a warm call does no I/O.

Every change of an account stands in the accounts' change feed, written in the same transaction. What is
remembered is believed only while that feed was read less than `trust_seconds` ago; a worker reads it twice a
second in the background, and at once when the doorbell rings (Redis pub/sub). So a revoked key is refused
within a second whatever becomes of the doorbell (P9), and where the feed cannot be read nobody gets in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from auth.principal import StoredKey, StoredTenant, StoredUser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from auth.principal import Change

KINDS = frozenset({"key", "tenant", "token", "user", "stream", "price", "catalog"})
"""What may be remembered, or is news to somebody; the feed has other entries too."""

LATEST = 50
"""How many entries of the feed are read at first."""

GAP_SECONDS = 60.0
"""How long a missing number is looked for: its transaction may commit after one with a higher number."""

_MAX_GAPS = 1000
_DOUBT_SECONDS = 0.05

REVOKED_SECONDS = 26 * 3600.0
"""How long a revoked token is remembered: longer than any token that is accepted may live."""


class CredentialStore(Protocol):
    """Where accounts are kept. Everything raises one exception of its own when it is away."""

    async def find_key(self, key_id: str) -> StoredKey | None:
        """The key with that id, with its tenant, or None."""
        ...

    async def find_tenant(self, name: str) -> StoredTenant | None:
        """The tenant with that id or that external id, or None."""
        ...

    async def find_user(self, email: str) -> StoredUser | None:
        """The admin with that address, or None."""
        ...

    async def revoked_tokens(self) -> list[str]:
        """The names (`token_name`) of all tokens revoked within REVOKED_SECONDS."""
        ...

    async def changes(self, after: int | None, gaps: Sequence[int] = ()) -> list[Change]:
        """The feed behind number `after`, and what has come to stand at `gaps`, by number.

        None: the last LATEST entries.
        """
        ...


class Clock(Protocol):
    """The two clocks: one for what is written down, one for what is measured."""

    def unix(self) -> float:
        """UTC seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...


_Flight = tuple[tuple[str, str], str]
_FEED: _Flight = (("feed", ""), "")


class _Entry(NamedTuple):
    at: float
    value: StoredKey | StoredTenant | StoredUser


def token_name(tenant_id: str | None, token_id: str) -> str:
    """A token's name in the feed: ids of tokens are only told apart within a tenant."""
    return f"{tenant_id or ''}/{token_id}"


class Memory:
    """One for each worker. `version` moves on with every change that is noticed."""

    def __init__(
        self,
        store: CredentialStore,
        clock: Clock,
        *,
        trust_seconds: float = 1.0,
        max_age_seconds: float = 30.0,
        entries: int = 10_000,
        loads: int = 4,
        away_seconds: float = 0.0,
    ) -> None:
        self.version = 0
        self._store = store
        self._clock = clock
        self._trust_seconds = trust_seconds
        self._max_age_seconds = max_age_seconds
        self._away_seconds = away_seconds  # so long what is remembered is believed though nobody can be asked
        self._failed_at = float("-inf")
        self._entries = entries
        self._loading = asyncio.Semaphore(loads)  # a flood of unknown ids must not take all connections
        self._known: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._unknown: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._under_way: dict[_Flight, asyncio.Future[Any]] = {}
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._position: int | None = None
        self._gaps: dict[int, float] = {}
        self._read_at = float("-inf")
        self._news: set[tuple[str, str]] = set()

    # --- looking up -----------------------------------------------------------------------------

    async def key(
        self, key_id: str, *, asker: str = "", guard: Callable[[], None] | None = None
    ) -> StoredKey | None:
        """The key with that id.

        Before anything is looked up `guard` is asked, which raises where `asker` gets no look-ups.
        """
        found = await self._recall("key", key_id, self._store.find_key, asker, guard)
        return found if isinstance(found, StoredKey) else None

    async def tenant(self, name: str) -> StoredTenant | None:
        """The tenant with that id or external id."""
        found = await self._recall("tenant", name, self._store.find_tenant)
        return found if isinstance(found, StoredTenant) else None

    async def user(self, email: str) -> StoredUser | None:
        """The admin with that address."""
        found = await self._recall("user", email, self._store.find_user)
        return found if isinstance(found, StoredUser) else None

    def revoked(self, tenant_id: str | None, token_id: str) -> bool:
        """Whether that token was revoked. Ask after `current`."""
        return token_name(tenant_id, token_id) in self._revoked

    async def _recall(
        self,
        kind: str,
        name: str,
        load: Callable[[str], Awaitable[Any]],
        asker: str = "",
        guard: Callable[[], None] | None = None,
    ) -> Any:
        await self.current()
        now, place = self._clock.monotonic(), (kind, name)
        entry = self._known.get(place)
        if entry is not None and (now - entry.at < self._max_age_seconds or self._is_alone(now)):
            self._known.move_to_end(place)
            return entry.value
        if now - self._unknown.get(place, float("-inf")) < self._max_age_seconds:
            return None
        flight = (place, asker)
        guard = guard if entry is None else None  # what was known before is not invented

        async def look() -> Any:
            mine = self._under_way[flight]
            async with self._loading:
                if guard is not None:  # here, because many may have waited for their turn
                    guard()
                found = await load(name)
            if self._under_way.get(flight) is mine:  # else a change was noticed that it may be older than
                self._keep(place, found)
            return found

        return await self._once(flight, look)

    def _keep(self, place: tuple[str, str], found: Any) -> None:
        now = self._clock.monotonic()
        if found is None:
            put(self._unknown, place, now, self._entries)
        else:
            put(self._known, place, _Entry(now, found), self._entries)

    # --- the feed -------------------------------------------------------------------------------

    async def current(self) -> None:
        """Make sure that the feed was read less than `trust_seconds` ago. Raises what the store raises."""
        oldest = self._clock.monotonic() - self._trust_seconds
        while self._read_at <= oldest:  # again, where it joined a reading that had begun too long ago
            if self._is_alone(self._clock.monotonic()):
                return
            try:
                await self._once(_FEED, self.refresh)
            except Exception:
                if not self._is_alone(self._clock.monotonic()):
                    raise

    def _is_alone(self, now: float) -> bool:
        """Whether the store is away, and what is remembered goes on to hold for a while."""
        return self._failed_at > self._read_at and now - self._read_at < self._away_seconds

    async def doubt(self) -> None:
        """Read the feed, where something looks older than it can be; twenty times a second at most."""
        if self._clock.monotonic() - self._read_at >= _DOUBT_SECONDS:
            await self._once(_FEED, self.refresh)

    async def refresh(self) -> None:
        """Read the feed now, and forget what has changed."""
        started, after = self._clock.monotonic(), self._position
        self._gaps = {seq: at for seq, at in self._gaps.items() if started - at < GAP_SECONDS}
        try:
            changes = await self._store.changes(after, list(self._gaps))
        except Exception:
            self._failed_at = started
            raise
        if after is None:  # behind the feed's reading, so that nothing falls between the two
            revoked = await self._store.revoked_tokens()
            self._revoked = OrderedDict(dict.fromkeys(revoked, started)) | self._revoked
            if self._position is None and len(changes) < LATEST:
                self._position = 0  # that is all of the feed: any number that is missing may still come
        for change in changes:
            if self._is_new(change.seq, started) and change.kind in KINDS:
                self._forget(change, started)
        self._position = self._position or 0  # of a feed without entries
        self._read_at = max(self._read_at, started)

    def _is_new(self, seq: int, now: float) -> bool:
        """Move on in the feed, and note the numbers that are left out. False for what was there before."""
        if self._position is None:
            self._position = seq - 1
        if seq <= self._position:
            return self._gaps.pop(seq, None) is not None
        self._gaps |= dict.fromkeys(range(max(self._position + 1, seq - _MAX_GAPS), seq), now)
        self._position = seq
        return True

    def take_news(self) -> set[tuple[str, str]]:
        """What has changed, as kind and id, since this was last asked."""
        news, self._news = self._news, set()
        return news

    def _forget(self, change: Change, now: float) -> None:
        self.version += 1
        self._news.add((change.kind, change.id))
        if change.kind == "token":
            self._revoked[change.id] = now
            self._revoked.move_to_end(change.id)
            while now - next(iter(self._revoked.values())) >= REVOKED_SECONDS:
                self._revoked.popitem(last=False)
        elif change.kind == "tenant":
            self._under_way = {name: work for name, work in self._under_way.items() if name == _FEED}
            gone = [place for place, entry in self._known.items() if _tenant_of(entry.value) == change.id]
            for place in gone:
                del self._known[place]
            self._unknown.clear()  # it may have been asked for by a name that it had not then
        else:
            place = (change.kind, change.id)
            for name in [name for name in self._under_way if name[0] == place]:
                del self._under_way[name]
            self._known.pop(place, None)
            self._unknown.pop(place, None)

    async def _once(self, name: _Flight, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do `work`, or wait for the same that is under way."""
        while (other := self._under_way.get(name)) is not None:
            await asyncio.wait([other])
            if not other.cancelled():
                return other.result()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._under_way[name] = future
        try:
            future.set_result(await work())
        except Exception as error:
            future.set_exception(error)
            future.exception()  # whether or not somebody else waits for it, it is raised here
            raise
        finally:
            future.cancel()  # where this task was given up; whoever waits tries for itself
            if self._under_way.get(name) is future:  # a change may have taken it away
                del self._under_way[name]
        return future.result()


def put(places: OrderedDict[Any, Any], place: Any, value: Any, limit: int) -> None:
    """Set it as the newest; the oldest goes where there would be more than `limit`."""
    places[place] = value
    places.move_to_end(place)
    if len(places) > limit:
        places.popitem(last=False)


def _tenant_of(value: StoredKey | StoredTenant | StoredUser) -> str | None:
    if isinstance(value, StoredKey):
        return value.tenant.id
    return value.id if isinstance(value, StoredTenant) else None
