"""Accounts made by hand: a store whose every answer the test can count, hold back and refuse."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auth import keys
from auth.authenticator import Authenticator
from auth.door import Door
from auth.issuers import ForeignClaims
from auth.memory import LATEST, Memory
from auth.principal import (
    TENANT_SCOPES,
    Change,
    NotAuthenticated,
    Scope,
    StoredKey,
    StoredTenant,
    StoredUser,
    fingerprint,
)
from auth.tokens import TokenSigner
from tests.auth.support import NOW, SECRET, HandClock
from tests.support.openid import base64url, compact

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from auth.jws import Peeked
    from auth.principal import Principal

HOME = "192.0.2.7"
SIGNER = TokenSigner(SECRET)
CHAT = frozenset({Scope.CHAT})
ADMIN = frozenset({Scope.ADMIN})
FOREIGN = ForeignClaims("https://idp.example", "acme", CHAT, "eve", "f1", NOW, NOW + 600)
"""What a provider's token says of the end user `eve` of the tenant `acme`."""


PLACES = [("key", "k"), ("tenant", "tn_1"), ("tenant", "acme"), ("user", "ann@gate")]
MISSES = [("key", "no"), ("tenant", "no"), ("user", "no")]
"""Kinds and names that `bench_of_places` knows, and such that it does not."""


class Away(Exception):  # noqa: N818 - reads as what happened
    """The store does not answer."""


def at(seconds: float) -> datetime:
    """So many seconds after NOW."""
    return datetime.fromtimestamp(NOW + seconds, UTC)


class HandStore:
    """Accounts in dicts, and the feed of their changes, which nobody writes but the test.

    `calls` are kind and name of all that was asked; kinds are key, tenant, user, feed and revoked. An answer
    is read when it is asked for, whenever it arrives. `failing` are kinds that raise Away.
    """

    def __init__(self) -> None:
        self.keys: dict[str, StoredKey] = {}
        self.tenants: dict[str, StoredTenant] = {}
        self.external: dict[str, str] = {}
        self.users: dict[str, StoredUser] = {}
        self.revoked: list[str] = []
        self.feed: list[Change] = []
        self.calls: list[tuple[str, Any]] = []
        self.failing: set[str] = set()
        self.at_one_time = self.most_at_one_time = 0
        self._held: dict[str, list[asyncio.Event]] = {}

    # --- what Memory asks -----------------------------------------------------------------------

    async def find_key(self, key_id: str) -> StoredKey | None:
        found = self.keys.get(key_id)
        if found is not None:
            found = replace(found, tenant=self.tenants[found.tenant.id])
        return await self._answer("key", key_id, found)

    async def find_tenant(self, name: str) -> StoredTenant | None:
        return await self._answer("tenant", name, self.tenants.get(self.external.get(name, name)))

    async def find_user(self, email: str) -> StoredUser | None:
        return await self._answer("user", email, self.users.get(email))

    async def revoked_tokens(self) -> list[str]:
        return await self._answer("revoked", None, list(self.revoked))

    async def changes(self, after: int | None, gaps: Sequence[int] = ()) -> list[Change]:
        feed = sorted(self.feed)
        found = feed[-LATEST:]
        if after is not None:
            found = [change for change in feed if change.seq > after or change.seq in gaps]
        return await self._answer("feed", after, found)

    async def _answer(self, kind: str, name: Any, found: Any) -> Any:
        self.calls.append((kind, name))
        self.at_one_time += 1
        self.most_at_one_time = max(self.most_at_one_time, self.at_one_time)
        try:
            if held := self._held.get(kind):
                await held.pop(0).wait()
            await asyncio.sleep(0)  # as any I/O, it lets others run
            if kind in self.failing:
                raise Away(kind)
        finally:
            self.at_one_time -= 1
        return found

    # --- what the test does ---------------------------------------------------------------------

    def hold(self, kind: str, times: int = 1) -> asyncio.Event:
        """The next so many answers of that kind wait for the event."""
        event = asyncio.Event()
        self._held.setdefault(kind, []).extend([event] * times)
        return event

    def count(self, kind: str) -> int:
        """How often the store was asked for that kind."""
        return Counter(kind for kind, _ in self.calls)[kind]

    async def asked(self, kind: str, times: int = 1) -> None:
        """Let others run until the store was asked so often."""
        await until(lambda: self.count(kind) >= times)

    def note(self, kind: str, name: str, seq: int | None = None) -> None:
        """An entry in the feed: the next one, or the one with that number."""
        last = max((change.seq for change in self.feed), default=0)
        self.feed.append(Change(last + 1 if seq is None else seq, kind, name))

    def add_tenant(self, tenant_id: str = "tn_1", external_id: str | None = None, **more: Any) -> None:
        values: dict[str, Any] = {"active": True, "max_streams": 20} | more
        self.tenants[tenant_id] = StoredTenant(tenant_id, **values)
        if external_id is not None:
            self.external[external_id] = tenant_id

    def add_key(self, tenant_id: str = "tn_1", **more: Any) -> keys.ApiKey:
        """A new key; the store knows its hash alone."""
        if tenant_id not in self.tenants:
            self.add_tenant(tenant_id)
        key = keys.mint()
        values: dict[str, Any] = {"scopes": TENANT_SCOPES} | more
        self.keys[key.id] = StoredKey(key.id, self.tenants[tenant_id], key.sha256, **values)
        return key

    def add_user(self, email: str = "ann@gate", password_hash: str = "hash") -> None:
        self.users[email] = StoredUser(email, password_hash)

    def change_key(self, key: keys.ApiKey, **changes: Any) -> None:
        """Change the row and write it down in the feed."""
        self.keys[key.id] = replace(self.keys[key.id], **changes)
        self.note("key", key.id)

    def change_tenant(self, tenant_id: str = "tn_1", **changes: Any) -> None:
        """Change the row and write it down in the feed."""
        self.tenants[tenant_id] = replace(self.tenants[tenant_id], **changes)
        self.note("tenant", tenant_id)

    def revoke_token(self, name: str) -> None:
        """Keep it as revoked and write it down in the feed."""
        self.revoked.append(name)
        self.note("token", name)


class HandIssuers:
    """Identity providers: `tokens` are those that hold, `reads` how many signatures were checked."""

    def __init__(self) -> None:
        self.tokens: dict[str, ForeignClaims] = {}
        self.reads = 0

    def issue(self, claims: ForeignClaims) -> str:
        """A token that says this; whoever reads it has to ask here."""
        payload = {"iss": claims.issuer, "number": len(self.tokens)}
        token = f"{compact({'alg': 'RS256'}, payload)}.{base64url(b'signed')}"
        self.tokens[token] = claims
        return token

    async def read(self, token: str, _peeked: Peeked) -> ForeignClaims:
        self.reads += 1
        if token not in self.tokens:
            raise NotAuthenticated
        return self.tokens[token]


class Bench:
    """An authenticator with all that it needs, each of it in the test's hand."""

    def __init__(self, **memory: Any) -> None:
        self.clock = HandClock()
        self.store = HandStore()
        self.issuers = HandIssuers()
        self.memory = Memory(self.store, self.clock, **memory)
        self.door = Door(self.clock)
        issuers: Any = self.issuers
        self.authenticator = Authenticator(self.memory, SIGNER, issuers, self.door, self.clock)

    def token(self, ttl_seconds: int = 600, **claims: Any) -> str:
        """A token of our own, of now."""
        user = self.store.users.get(claims.get("user", ""))
        proof = None if user is None else fingerprint(user.password_hash)
        claims = {"scopes": TENANT_SCOPES, "proof": proof} | claims
        return SIGNER.sign(now=self.clock.unix(), ttl_seconds=ttl_seconds, **claims).text

    async def ask(self, credential: str | keys.ApiKey, address: str = HOME) -> Principal:
        """Who that is."""
        text = credential if isinstance(credential, str) else credential.text
        return await self.authenticator.principal(text, address)

    async def later(self, seconds: float) -> None:
        """Turn the clock, and read the feed as the background does."""
        self.clock.seconds += seconds
        await self.memory.refresh()


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until it is so; give up when that many rounds have changed nothing."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def until_all_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Let others run until each of the tasks is done or waits for something."""
    tasks = list(tasks)
    await until(lambda: all(task.done() or getattr(task, "_fut_waiter", None) is not None for task in tasks))


def bench_of_places(**memory: Any) -> Bench:
    """All of PLACES exist, none of MISSES does."""
    bench = Bench(**memory)
    bench.store.add_tenant("tn_1", "acme")
    put_key(bench, "k")
    bench.store.add_user()
    return bench


def put_key(bench: Bench, key_id: str, tenant_id: str = "tn_1") -> None:
    """A key of that id; its secret is of no use."""
    minted = bench.store.add_key(tenant_id)
    bench.store.keys[key_id] = bench.store.keys.pop(minted.id)


def find(bench: Bench, place: tuple[str, str]) -> Coroutine[Any, Any, Any]:
    """Ask the memory for it."""
    return getattr(bench.memory, place[0])(place[1])


def start(bench: Bench, place: tuple[str, str], times: int = 1) -> list[asyncio.Task[Any]]:
    """So many who ask the memory for it at one time."""
    loop = asyncio.get_running_loop()
    return [loop.create_task(find(bench, place)) for _ in range(times)]
