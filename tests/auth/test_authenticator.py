"""The authenticator: no I/O when warm, no credit for long, and nothing wider than the key."""

from __future__ import annotations

import pytest

from auth import keys
from auth.authenticator import Authenticator
from auth.principal import TENANT_SCOPES, NotAuthenticated, Principal, Scope
from auth.tokens import TokenSigner
from tests.auth.support import SECRET, CountingStore, HandClock

SIGNER = TokenSigner(SECRET)
CHAT = frozenset({Scope.CHAT})


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def authenticator(store: CountingStore, clock: HandClock) -> Authenticator:
    return Authenticator(store, SIGNER, clock, cache_seconds=1.0)


def bought(key: keys.ApiKey, clock: HandClock, scopes: frozenset[Scope] = TENANT_SCOPES, **more: str) -> str:
    return SIGNER.sign(now=clock.unix(), ttl_seconds=600, scopes=scopes, key_id=key.id, **more)


async def refused(authenticator: Authenticator, credential: str) -> str:
    """The public text of the refusal; there has to be one."""
    with pytest.raises(NotAuthenticated) as refusal:
        await authenticator.principal(credential)
    return str(refusal.value)


async def test_a_key_is_its_tenants_principal(authenticator, store):
    """Tenant, key, scopes and cap are those of the store."""
    key = store.add(CHAT, tenant_id="tn_7")
    assert await authenticator.principal(key.text) == Principal(
        scopes=CHAT, tenant_id="tn_7", key_id=key.id, max_streams=20
    )


async def test_a_warm_call_does_no_io(authenticator, store, clock):
    """A hundred requests with a key and its tokens within the second ask the database once."""
    key = store.add()
    token = bought(key, clock)
    for _ in range(50):
        await authenticator.principal(key.text)
        await authenticator.principal(token)
        clock.seconds += 0.01
    assert store.calls == [key.id]


async def test_a_revoked_key_is_refused_within_the_second(authenticator, store, clock):
    """Revoked right after it was looked up, which is the worst case, it holds for one second at most (P9)."""
    key = store.add()
    token = bought(key, clock)
    await authenticator.principal(key.text)
    store.revoke(key)
    clock.seconds = 1.0
    await refused(authenticator, key.text)
    await refused(authenticator, token)


async def test_the_second_counts_from_before_the_lookup(authenticator, store, clock):
    """A database that takes its time to answer does not prolong what it answered."""
    key = store.add()

    def slow() -> None:
        clock.seconds += 0.8
        store.revoke(key)

    store.before_answer = slow
    await authenticator.principal(key.text)
    store.before_answer = lambda: None
    clock.seconds = 1.0
    await refused(authenticator, key.text)


async def test_a_suspended_tenants_keys_and_tokens_are_refused(authenticator, store, clock):
    """And work again when the tenant does."""
    key = store.add()
    token = bought(key, clock)
    store.change(key, tenant_active=False)
    await refused(authenticator, key.text)
    await refused(authenticator, token)
    store.change(key, tenant_active=True)
    clock.seconds = 1.0
    assert (await authenticator.principal(key.text)).key_id == key.id
    assert (await authenticator.principal(token)).key_id == key.id


async def test_every_refusal_reads_the_same(authenticator, store, clock):
    """An unknown id, a wrong secret, a revoked key and a broken token cannot be told apart."""
    key, gone, stranger = store.add(), store.add(), keys.mint()
    store.revoke(gone)
    body = keys.mint().secret[:-6]
    forged = keys.parse(f"sg_{key.id}_{body}{keys._check(key.id, body)}")
    assert forged is not None
    credentials = [forged.text, gone.text, stranger.text, "sg_", "junk", key.text + "x"]
    credentials += [bought(gone, clock), bought(stranger, clock), bought(key, clock)[:-5]]
    assert {await refused(authenticator, credential) for credential in credentials} == {
        str(NotAuthenticated())
    }


async def test_what_is_no_key_costs_no_lookup(authenticator, store):
    """The checksum tells garbage and typing errors from keys before the database is asked."""
    key = store.add()
    for text in ("sg_", "sg_x_y", key.text[:-1], key.text + "0", key.text.swapcase()):
        await refused(authenticator, text)
    assert store.calls == []


async def test_an_unknown_key_is_looked_up_once_a_second(authenticator, store, clock):
    """A client that goes on with a deleted key does not reach the database each time."""
    stranger = keys.mint()
    for _ in range(10):
        await refused(authenticator, stranger.text)
    assert store.calls == [stranger.id]
    clock.seconds = 1.0
    await refused(authenticator, stranger.text)
    assert len(store.calls) == 2


async def test_a_token_is_never_wider_than_its_key(authenticator, store, clock):
    """Scopes are those of both: of the token as it was signed, and of the key as it is now."""
    key = store.add(TENANT_SCOPES)
    wide = bought(key, clock, frozenset({Scope.ADMIN, Scope.CHAT, Scope.USAGE_READ}))
    narrow = bought(key, clock, CHAT, end_user="ann")
    assert (await authenticator.principal(wide)).scopes == TENANT_SCOPES
    principal = await authenticator.principal(narrow)
    assert (principal.scopes, principal.end_user, principal.tenant_id) == (CHAT, "ann", "tn_1")
    assert principal.token_id
    store.change(key, scopes=frozenset({Scope.USAGE_READ}))
    clock.seconds = 1.0
    assert (await authenticator.principal(wide)).scopes == {Scope.USAGE_READ}
    assert (await authenticator.principal(narrow)).scopes == frozenset()


async def test_a_key_narrowed_is_narrow_within_the_second(authenticator, store, clock):
    """A scope that is taken away goes like a revocation does."""
    key = store.add()
    await authenticator.principal(key.text)
    store.change(key, scopes=CHAT)
    clock.seconds = 1.0
    assert (await authenticator.principal(key.text)).scopes == CHAT


async def test_a_token_ends_by_the_gates_clock(authenticator, store, clock):
    """Not by the machine's, and also while the key is remembered."""
    key = store.add()
    token = bought(key, clock)
    await authenticator.principal(token)
    clock.seconds = 600.0
    await refused(authenticator, token)


async def test_an_admins_token_needs_no_database(authenticator, store, clock):
    """It belongs to no tenant and no key."""
    token = SIGNER.sign(now=clock.unix(), ttl_seconds=60, scopes=frozenset({Scope.ADMIN}), user="a@b")
    principal = await authenticator.principal(token)
    assert (principal.user, principal.tenant_id, principal.key_id) == ("a@b", None, None)
    assert principal.scopes == {Scope.ADMIN}
    assert store.calls == []


async def test_the_cache_stays_bounded(store, clock):
    """A flood of invented ids costs memory for the bound alone, and pushes the oldest out first."""
    authenticator = Authenticator(store, SIGNER, clock, cache_entries=10)
    for _ in range(100):
        await refused(authenticator, keys.mint().text)
    assert len(authenticator._cache) == 10
    key = store.add()
    await authenticator.principal(key.text)
    for _ in range(9):
        await refused(authenticator, keys.mint().text)
    before = len(store.calls)
    await authenticator.principal(key.text)
    assert len(store.calls) == before
    await refused(authenticator, keys.mint().text)
    await authenticator.principal(key.text)
    assert len(store.calls) == before + 2


async def test_a_database_that_fails_lets_nobody_in(authenticator, store, clock):
    """Fails closed with the database's own error, forgets it, and never serves what is too old."""

    def down() -> None:
        raise ConnectionError("down")

    key = store.add()
    await authenticator.principal(key.text)
    store.before_answer = down
    clock.seconds = 1.0
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await authenticator.principal(key.text)
    store.before_answer = lambda: None
    assert (await authenticator.principal(key.text)).key_id == key.id
