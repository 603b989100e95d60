"""A principal: what it may use, what binds it, when it ends, and whether it still holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from auth.principal import (
    TENANT_SCOPES,
    Limit,
    NotAuthenticated,
    Principal,
    Scope,
    StoredKey,
    StoredTenant,
    matches,
)
from tests.auth.accounts import ADMIN, CHAT, FOREIGN, Away, Bench, at
from tests.auth.support import NOW


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def gone(bench: Bench, principal: Principal) -> bool:
    """Whether the principal holds no more."""
    try:
        await bench.authenticator.again(principal)
    except NotAuthenticated:
        return True
    return False


# --- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "model", "expected"),
    [
        ("gpt-5", "gpt-5", True),
        ("gpt-5", "gpt-5-mini", False),
        ("gpt-5", "GPT-5", False),
        ("gpt-*", "gpt-5", True),
        ("gpt-*", "gpt-", True),
        ("gpt-*", "gpt", False),
        ("gpt-*", "my-gpt-5", False),
        ("*", "anything", True),
        ("*", "", True),
        ("", "gpt-5", False),
        ("g*5", "gpt-5", False),
        ("gpt.5", "gpt-5", False),
        ("**", "gpt", False),
    ],
)
def test_a_pattern_is_a_name_or_a_beginning(pattern, model, expected):
    """A star stands at the end, for anything; no other sign means anything."""
    assert matches(model, pattern) is expected


@pytest.mark.parametrize(
    ("models", "usable"),
    [
        ((), {"a1", "a2", "b"}),
        ((("a*",),), {"a1", "a2"}),
        ((("a1", "b"),), {"a1", "b"}),
        ((("a*",), ("a1", "b")), {"a1"}),
        ((("a*",), ("b",)), set()),
        (((),), set()),
    ],
)
def test_each_list_has_to_allow_the_model(models, usable):
    """The key's and the token's: none widens the other, and an empty one allows nothing."""
    caller = Principal(scopes=CHAT, models=models)
    assert {model for model in ("a1", "a2", "b") if caller.may_use(model)} == usable


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ({"user": "ann@gate", "token_id": "t"}, "user:ann@gate"),
        ({"key_id": "k", "tenant_id": "tn_1"}, "key:k"),
        ({"key_id": "k", "token_id": "t", "end_user": "eve"}, "key:k"),
        ({"token_id": "t", "end_user": "eve", "tenant_id": "tn_1"}, "token:t"),
    ],
)
def test_everybody_has_a_name_for_the_log(who, name):
    """The admin, else the key, else the token; never what an end user calls itself."""
    assert Principal(scopes=CHAT, **who).name == name


V4, V6, BOTH = ("192.0.2.0/24",), ("2001:db8::/32",), ("192.0.2.0/24", "2001:db8::/32", "10.0.0.1/32")


@pytest.mark.parametrize(
    ("networks", "address", "expected"),
    [
        ((), "203.0.113.9", True),
        ((), "", True),
        ((), "garbage", True),
        (V4, "192.0.2.255", True),
        (V4, "192.0.3.0", False),
        (V4, "::ffff:192.0.2.1", True),
        (V4, "::ffff:c000:201", True),
        (V4, "::ffff:192.0.3.1", False),
        (V4, "::192.0.2.1", False),
        (V4, "2001:db8::1", False),
        (V6, "2001:db8:ffff::1", True),
        (V6, "2001:db9::1", False),
        (V6, "192.0.2.1", False),
        (BOTH, "10.0.0.1", True),
        (BOTH, "10.0.0.2", False),
        (BOTH, "2001:DB8::1", True),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("::/0",), "192.0.2.1", False),
        *(
            (("0.0.0.0/0", "::/0"), text, False)
            for text in ("", "garbage", "192.0.2", "192.0.2.1/32", "1", "[::1]")
        ),
        *((V4, text, False) for text in ("192.0.2.07", "192.0.2.1 ", "192.0.2.1:80", "3221225985")),
    ],
)
def test_an_address_is_in_a_network_or_nowhere(networks, address, expected):
    """IPv4 in IPv6 is IPv4; what is no address is in no network, however wide."""
    tenant = StoredTenant("tn_1", active=True, max_streams=1)
    key = StoredKey("k", tenant, b"", TENANT_SCOPES, allowed_addresses=networks)
    assert key.allows(address) is expected


# --- bought tokens ----------------------------------------------------------------------------------


async def test_a_bought_token_is_its_keys_principal_and_narrower(bench):
    """Scopes that both have, models and limits of both; the end user and the allowance are the token's."""
    bench.store.add_tenant("tn_1", max_streams=9, default_model="small")
    key = bench.store.add_key(max_streams=5, models=("a*",))
    token = bench.token(
        key_id=key.id,
        scopes={Scope.CHAT, Scope.ADMIN, Scope.TENANT_ADMIN},
        end_user="eve",
        models=["a1", "b"],
        max_streams=2,
        max_tokens=1000,
    )
    caller = await bench.ask(token)
    assert caller.token_id
    assert caller == Principal(
        scopes=CHAT,
        tenant_id="tn_1",
        key_id=key.id,
        token_id=caller.token_id,
        end_user="eve",
        limits=(
            Limit("tenant", "tn_1", 9),
            Limit("key", key.id, 5),
            Limit("token", caller.token_id, 2),
            Limit("token", caller.token_id, 1000, "tokens_in_all"),
        ),
        models=(("a*",), ("a1", "b")),
        default_model="small",
        expires_at=NOW + 600,
    )


async def test_a_bought_token_that_asks_for_no_limits_has_those_of_its_key(bench):
    """None of its own: no cap, no list, no allowance."""
    key = bench.store.add_key(models=("a*",))
    caller, of_key = await bench.ask(bench.token(key_id=key.id)), await bench.ask(key)
    assert replace(caller, token_id=None, expires_at=None) == of_key


async def test_a_key_that_is_narrowed_later_narrows_the_tokens_it_bought(bench):
    """The token says what it said; the key is as it is now."""
    key = bench.store.add_key()
    wide = bench.token(key_id=key.id)
    other = bench.token(key_id=key.id, scopes=CHAT, models=["b"], max_streams=50)
    assert (await bench.ask(wide)).scopes == TENANT_SCOPES
    bench.store.change_key(key, scopes={Scope.USAGE_READ}, models=("a",), max_streams=1, expires_at=at(60))
    bench.store.change_tenant(max_streams=3)
    await bench.later(0.1)
    caller = await bench.ask(wide)
    assert (caller.scopes, caller.models, caller.expires_at) == ({Scope.USAGE_READ}, (("a",),), NOW + 60)
    assert caller.limits == (Limit("tenant", "tn_1", 3), Limit("key", key.id, 1))
    caller = await bench.ask(other)
    assert caller.scopes == frozenset()
    assert not caller.may_use("a")
    assert not caller.may_use("b")
    assert caller.limits == (
        Limit("tenant", "tn_1", 3),
        Limit("key", key.id, 1),
        Limit("token", caller.token_id, 50),
    )


@pytest.mark.parametrize(
    ("key_ends", "grace_ends", "token_ends", "ends"),
    [
        (None, None, None, None),
        (60, None, None, 60),
        (None, 30, None, 30),
        (60, 30, None, 30),
        (30, 60, None, 30),
        (None, None, 90, 90),
        (60, None, 90, 60),
        (120, None, 90, 90),
        (120, 30, 90, 90),
    ],
)
async def test_a_principal_ends_with_the_first_of_its_ends(bench, key_ends, grace_ends, token_ends, ends):
    """The key's expiry, the grace of the secret that was sent, the token's; no token ends with a grace."""
    key = bench.store.add_key(expires_at=None if key_ends is None else at(key_ends))
    if grace_ends is not None:
        rotated = {
            "secret_sha256": bytes(32),
            "previous_sha256": key.sha256,
            "previous_until": at(grace_ends),
        }
        bench.store.change_key(key, **rotated)
    credential = key.text if token_ends is None else bench.token(ttl_seconds=token_ends, key_id=key.id)
    caller = await bench.ask(credential)
    assert caller.expires_at == (None if ends is None else NOW + ends)


# --- once again -------------------------------------------------------------------------------------


async def caller_of(bench: Bench, kind: str) -> Principal:
    """A principal of that kind; where it has a tenant, that is tn_1."""
    bench.store.add_tenant("tn_1", "acme")
    key = bench.store.add_key(scopes=CHAT)
    bench.store.add_user()
    return await bench.ask(
        {
            "key": lambda: key.text,
            "bought": lambda: bench.token(key_id=key.id),
            "foreign": lambda: bench.issuers.issue(FOREIGN),
            "user": lambda: bench.token(user="ann@gate", scopes=ADMIN),
            "foreign admin": lambda: bench.issuers.issue(replace(FOREIGN, tenant=None, scopes=ADMIN)),
        }[kind]()
    )


KINDS = ["key", "bought", "foreign", "user", "foreign admin"]
CHANGES = {
    "nothing": set(),
    "another key": set(),
    "tenant suspended": {"key", "bought", "foreign"},
    "tenant gone": {"foreign"},
    "key revoked": {"key", "bought"},
    "key gone": {"key", "bought"},
    "key expires": {"key", "bought"},
    "token revoked": {"bought", "foreign", "user", "foreign admin"},
    "token of another tenant revoked": set(),
    "time": {"bought", "foreign", "user", "foreign admin"},
}


def happen(bench: Bench, caller: Principal, what: str) -> None:
    store, key_id = bench.store, caller.key_id or ""
    if what == "another key":
        store.change_key(store.add_key(), revoked_at=at(0))
    elif what == "tenant suspended":
        store.change_tenant(active=False)
    elif what == "tenant gone":
        if caller.key_id is None:
            del store.tenants["tn_1"]
        store.note("tenant", "tn_1")
    elif what.startswith("key") and caller.key_id is not None:
        if what == "key gone":
            del store.keys[key_id]
        else:
            changes = {"revoked_at": at(0)} if what == "key revoked" else {"expires_at": at(0)}
            store.keys[key_id] = replace(store.keys[key_id], **changes)
        store.note("key", key_id)
    elif what.startswith("token"):
        tenant = "tn_9" if "another" in what else caller.tenant_id or ""
        store.revoke_token(f"{tenant}/{caller.token_id}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", CHANGES)
async def test_a_principal_is_gone_once_what_it_stands_on_is(bench, kind, what):
    """For every kind of caller: the key, the tenant, the token, and its time."""
    caller = await caller_of(bench, kind)
    assert not await gone(bench, caller)
    happen(bench, caller, what)
    await bench.later(600 if what == "time" else 0.1)
    assert await gone(bench, caller) == (kind in CHANGES[what])


async def test_looking_again_does_no_io_while_nothing_changed(bench):
    """A thousand streams are looked at when one key changes."""
    for kind in KINDS[:3]:
        caller = await caller_of(bench, kind)
        if kind == "foreign":
            await bench.authenticator.again(caller)  # the tenant was known by its other name alone
        before = list(bench.store.calls)
        assert await bench.authenticator.again(caller) == caller
        assert bench.store.calls == before


@pytest.mark.parametrize("kind", KINDS)
async def test_where_the_feed_cannot_be_read_nobody_is_said_to_hold(bench, kind):
    """The store's error, as for those who come new; within the second of the last reading they hold."""
    caller = await caller_of(bench, kind)
    bench.store.failing = {"feed"}
    bench.clock.seconds = 0.9
    assert not await gone(bench, caller)
    bench.clock.seconds = 1.0
    with pytest.raises(Away):
        await gone(bench, caller)


async def test_an_end_that_was_set_since_counts(bench):
    """A key that got an expiry ends what runs with it; one that got a longer life prolongs nothing."""
    key = bench.store.add_key()
    caller = await bench.ask(key)
    for ends, expected in ((60, 60), (30, 30), (90, 30), (None, 30)):
        bench.store.change_key(key, expires_at=None if ends is None else at(ends))
        await bench.later(0.1)
        caller = await bench.authenticator.again(caller)
        assert caller.expires_at == NOW + expected


async def test_the_end_of_a_grace_ends_what_began_in_it(bench):
    """The secret is another one since: the principal that came with the old one has its own end."""
    key = bench.store.add_key()
    rotated = {"secret_sha256": bytes(32), "previous_sha256": key.sha256, "previous_until": at(5)}
    bench.store.change_key(key, **rotated)
    caller = await bench.ask(key)
    await bench.later(4.9)
    assert not await gone(bench, caller)
    await bench.later(0.1)
    assert await gone(bench, caller)


# --- as of ------------------------------------------------------------------------------------------


async def test_a_principal_says_how_much_was_known_when_it_was_made(bench):
    """As much as the memory's version; again, it is that of now."""
    key = bench.store.add_key()
    bench.store.note("key", "other")
    caller = await bench.ask(key)
    assert caller.as_of == bench.memory.version == 1
    bench.store.note("key", "other")
    await bench.later(0.1)
    assert caller.as_of != bench.memory.version
    again = await bench.authenticator.again(caller)
    assert again.as_of == bench.memory.version == 2
    assert replace(again, as_of=1) == caller


@pytest.mark.parametrize("again", [False, True])
async def test_a_change_that_is_noticed_during_the_lookup_shows(bench, again):
    """What was looked up may be older than it: the principal does not claim to know of it."""
    key = bench.store.add_key()
    caller = await bench.ask(key)
    bench.clock.seconds = 30
    await bench.memory.refresh()
    answer = bench.store.hold("key")
    work = bench.authenticator.again(caller) if again else bench.ask(key)
    task = asyncio.get_running_loop().create_task(work)
    await bench.store.asked("key", 2)
    bench.store.change_key(key, revoked_at=at(0))
    await bench.memory.refresh()
    answer.set()
    assert (await task).as_of != bench.memory.version
    assert await gone(bench, await task)
