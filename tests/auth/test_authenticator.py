"""Who gets in: keys, tokens of our own, tokens of an identity provider, and whether they still hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from auth import keys
from auth.principal import TENANT_SCOPES, Limit, NotAllowed, NotAuthenticated, Principal, Scope
from tests.auth.accounts import ADMIN, CHAT, FOREIGN, SIGNER, Away, Bench, at
from tests.auth.support import NOW, claims, forge


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def refused(bench: Bench, credential: str | keys.ApiKey) -> str:
    """The public text of the refusal; there has to be one."""
    with pytest.raises(NotAuthenticated) as refusal:
        await bench.ask(credential)
    return str(refusal.value)


# --- keys -------------------------------------------------------------------------------------------


async def test_a_key_is_its_tenants_principal(bench):
    """Tenant, key, scopes, limits, models and the default model are those of the store."""
    bench.store.add_tenant("tn_7", max_streams=9, default_model="small")
    plain = bench.store.add_key("tn_7", scopes=CHAT)
    narrow = bench.store.add_key("tn_7", max_streams=3, models=("a*", "b"), expires_at=at(60))
    expected = Principal(
        scopes=CHAT,
        tenant_id="tn_7",
        key_id=plain.id,
        limits=(Limit("tenant", "tn_7", 9),),
        default_model="small",
    )
    assert await bench.ask(plain) == expected
    assert await bench.ask(narrow) == replace(
        expected,
        scopes=TENANT_SCOPES,
        key_id=narrow.id,
        limits=(Limit("tenant", "tn_7", 9), Limit("key", narrow.id, 3)),
        models=(("a*", "b"),),
        expires_at=NOW + 60,
    )


async def test_a_warm_call_does_no_io(bench):
    """Keys, the tokens that they bought, an admin's and an identity provider's: nothing is read again."""
    key = bench.store.add_key()
    bench.store.add_tenant("tn_2", "acme")
    bench.store.add_user()
    credentials = [
        key.text,
        bench.token(key_id=key.id),
        bench.token(user="ann@gate", scopes=ADMIN),
        bench.issuers.issue(FOREIGN),
    ]
    first = [await bench.ask(credential) for credential in credentials]
    before = list(bench.store.calls)
    for _ in range(99):
        bench.clock.seconds += 0.01
        assert [await bench.ask(credential) for credential in credentials] == first
    assert bench.store.calls == before
    assert sorted(kind for kind, _ in before) == ["feed", "key", "revoked", "tenant", "user"]


async def test_a_change_is_known_on_the_next_call_behind_it(bench):
    """Revoked, suspended or narrowed: as soon as the feed was read, and within a second by itself (P9)."""
    revoked, narrowed = bench.store.add_key(), bench.store.add_key()
    suspended = bench.store.add_key("tn_2")
    for key in (revoked, narrowed, suspended):
        await bench.ask(key)
    bench.store.change_key(revoked, revoked_at=at(0))
    bench.store.change_key(narrowed, scopes=CHAT)
    bench.store.change_tenant("tn_2", active=False)
    bench.clock.seconds += 1
    await refused(bench, revoked)
    await refused(bench, suspended)
    assert (await bench.ask(narrowed)).scopes == CHAT
    bench.store.change_tenant("tn_2", active=True)
    bench.clock.seconds += 1
    assert (await bench.ask(suspended)).tenant_id == "tn_2"


async def test_where_the_accounts_are_away_nobody_gets_in(bench):
    """The error is that of the store, for whatever credential, known or not."""
    key = bench.store.add_key()
    bench.store.add_user()
    credentials = [key.text, bench.token(key_id=key.id), bench.token(user="ann@gate", scopes=ADMIN), "junk"]
    caller = await bench.ask(key)
    bench.clock.seconds += 1
    bench.store.failing = {"feed"}
    for credential in credentials:
        with pytest.raises(Away):
            await bench.ask(credential)
    with pytest.raises(Away):
        await bench.authenticator.again(caller)


@pytest.mark.parametrize(
    ("grace", "seconds", "until"),
    [(60, 0, 60), (60, 59.9, 60), (60, 60, None), (0, 0, None), (None, 0, None)],
)
async def test_the_secret_before_the_last_rotation_holds_through_its_grace(bench, grace, seconds, until):
    """And its principal ends with it; the new secret holds all the while, with no end."""
    old = bench.store.add_key()
    new = keys.mint(old.id)
    ends = None if grace is None else at(grace)
    bench.store.change_key(old, secret_sha256=new.sha256, previous_sha256=old.sha256, previous_until=ends)
    bench.clock.seconds = seconds
    assert (await bench.ask(new)).expires_at is None
    if until is None:
        await refused(bench, old)
    else:
        assert (await bench.ask(old)).expires_at == NOW + until
    await refused(bench, keys.mint(old.id))


REFUSED_KEYS: dict[str, dict[str, Any]] = {
    "revoked": {"revoked_at": at(-1)},
    "to be revoked": {"revoked_at": at(60)},
    "expired": {"expires_at": at(1)},
    "rotated": {"secret_sha256": bytes(range(32))},
    "rotated, grace over": {"secret_sha256": bytes(range(32)), "previous_until": at(1)},
    "revoked in grace": {"secret_sha256": bytes(range(32)), "previous_until": at(9), "revoked_at": at(-1)},
    "expired in grace": {"secret_sha256": bytes(range(32)), "previous_until": at(9), "expires_at": at(1)},
}


@pytest.mark.parametrize("change", REFUSED_KEYS.values(), ids=REFUSED_KEYS)
async def test_a_key_that_does_not_hold_is_refused(bench, change):
    """With the one text that gives no reason; where the key is gone, so is a token that it bought."""
    key = bench.store.add_key()
    token = bench.token(key_id=key.id)
    assert (await bench.ask(key)).key_id == (await bench.ask(token)).key_id == key.id
    if "previous_until" in change:
        change = change | {"previous_sha256": key.sha256}
    bench.store.change_key(key, **change)
    await bench.later(1)
    assert await refused(bench, key) == str(NotAuthenticated())
    if {"revoked_at", "expires_at"} & change.keys():
        assert await refused(bench, token) == str(NotAuthenticated())


async def test_every_refusal_reads_the_same(bench):
    """Unknown, wrong, malformed, suspended, forged: nothing tells them apart."""
    key, suspended, stranger = bench.store.add_key(), bench.store.add_key("tn_2"), keys.mint()
    bench.store.add_tenant("tn_2", active=False)
    credentials = [suspended.text, stranger.text, keys.mint(key.id).text, "sg_", "junk", "", key.text + "x"]
    credentials += [bench.token(key_id=name) for name in (suspended.id, stranger.id)]
    credentials += [bench.token(key_id=key.id)[:-5], bench.token(user="nobody@gate", scopes=ADMIN)]
    credentials += [forge(claims(user=None)), "a.b.c", "\udc80", "sg_\udc80"]
    foreign = bench.issuers.issue(FOREIGN)  # of a tenant that is not known
    texts = {await refused(bench, text) for text in [*credentials, foreign]}
    assert texts == {"Incorrect API key or token provided."}


async def test_what_is_no_key_costs_no_lookup(bench):
    """The checksum tells garbage and typing errors from keys before anything is asked."""
    key = bench.store.add_key()
    for text in ("sg_", "sg_x_y", key.text[:-1], key.text + "0", key.text.swapcase(), f" {key.text}"):
        await refused(bench, text)
    assert bench.store.count("key") == 0


@pytest.mark.parametrize("name", ["nothing stored", "no grace", "in grace", "current", "revoked"])
async def test_two_hashes_are_compared_whatever_is_stored(bench, monkeypatch, name):
    """The time of an answer does not tell whether there is such a key."""
    key = bench.store.add_key()
    changes: dict[str, dict[str, Any]] = {
        "no grace": {"secret_sha256": bytes(range(32))},
        "in grace": {
            "secret_sha256": bytes(range(32)),
            "previous_sha256": key.sha256,
            "previous_until": at(9),
        },
        "revoked": {"revoked_at": at(-1)},
    }
    bench.store.change_key(key, **changes.get(name, {}))
    compared = []
    monkeypatch.setattr(keys, "same", lambda one, other: compared.append(other) or one == other)
    if name in {"current", "in grace"}:
        await bench.ask(key)
    else:
        await refused(bench, keys.mint() if name == "nothing stored" else key)
    tries = 2 if name in {"nothing stored", "no grace"} else 1  # a wrong secret is looked at again
    assert [len(sha256) for sha256 in compared] == [32, 32] * tries


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("192.0.2.7", True), ("::ffff:192.0.2.7", True), ("192.0.3.7", False), ("", False)],
)
async def test_a_key_is_bound_to_its_addresses(bench, address, allowed):
    """Elsewhere it is refused by name, because it holds; that is no use of it. Its tokens go anywhere."""
    key = bench.store.add_key(allowed_addresses=("192.0.2.0/24", "2001:db8::/32"))
    if allowed:
        await bench.ask(key, address)
    else:
        with pytest.raises(NotAllowed) as refusal:
            await bench.ask(key, address)
        assert refusal.value.code == "address_not_allowed"
    assert (key.id in bench.authenticator.take_used()) == allowed
    assert (await bench.ask(bench.token(key_id=key.id), address)).key_id == key.id
    with pytest.raises(NotAuthenticated):  # which is not told to who has but the id
        await bench.ask(keys.mint(key.id), address)


async def test_take_used_tells_when_keys_were_used_last(bench):
    """Each once, with the last time; who was refused used nothing; the next answer begins anew."""
    key, other = bench.store.add_key(), bench.store.add_key()
    await bench.ask(key)
    bench.clock.seconds = 0.5
    await bench.ask(key)
    await bench.ask(other)
    await refused(bench, keys.mint(key.id))
    await refused(bench, keys.mint())
    assert bench.authenticator.take_used() == {key.id: at(0.5), other.id: at(0.5)}
    assert bench.authenticator.take_used() == {}


# --- tokens of our own ------------------------------------------------------------------------------


async def test_an_admins_token_is_the_admins_principal(bench):
    """It belongs to no tenant and no key, and nobody else is asked for."""
    bench.store.add_user()
    token = bench.token(user="ann@gate", scopes=ADMIN)
    caller = await bench.ask(token)
    assert caller == Principal(scopes=ADMIN, user="ann@gate", token_id=caller.token_id, expires_at=NOW + 600)
    assert caller.token_id
    assert [call for call in bench.store.calls if call[0] in {"key", "tenant"}] == []


async def test_a_new_password_ends_the_tokens_from_before(bench):
    """Whatever the clocks say: a token holds as long as the password that it was got with."""
    bench.store.add_user()
    token = bench.token(user="ann@gate", scopes=ADMIN)
    caller = await bench.ask(token)
    assert caller.user == "ann@gate"
    bench.store.add_user(password_hash="another")
    bench.store.note("user", "ann@gate")
    await bench.later(0)
    await refused(bench, token)
    with pytest.raises(NotAuthenticated):
        await bench.authenticator.again(caller)
    assert (await bench.ask(bench.token(user="ann@gate", scopes=ADMIN))).user == "ann@gate"


async def test_an_admins_token_without_a_proof_is_refused(bench):
    """Nothing would end it."""
    bench.store.add_user()
    await refused(bench, bench.token(user="ann@gate", scopes=ADMIN, proof=None))


async def test_an_admin_who_was_removed_is_nobody(bench):
    """From the moment when the feed says so."""
    bench.store.add_user()
    token = bench.token(user="ann@gate", scopes=ADMIN)
    await bench.ask(token)
    del bench.store.users["ann@gate"]
    bench.store.note("user", "ann@gate")
    await bench.later(0.1)
    await refused(bench, token)


async def test_a_tokens_expiry_is_looked_at_each_time(bench):
    """By the gate's clock, to the second, although its signature is remembered."""
    key = bench.store.add_key()
    tokens = [bench.token(ttl_seconds=10, key_id=key.id)]
    bench.store.add_tenant("tn_2", "acme")
    tokens.append(bench.issuers.issue(replace(FOREIGN, expires_at=NOW + 10)))
    bench.clock.seconds = 9.9
    for token in tokens:
        await bench.ask(token)
    bench.clock.seconds = 10
    await refused(bench, tokens[0])
    bench.issuers.tokens.clear()  # as the provider's reader, which now finds it expired
    await refused(bench, tokens[1])
    assert bench.issuers.reads == 2


async def test_a_signature_is_checked_once_in_half_a_minute(bench, monkeypatch):
    """Not for each request; but a key that a provider withdraws counts no longer behind that."""
    bench.store.add_tenant("tn_2", "acme")
    key = bench.store.add_key()
    ours, foreign = bench.token(key_id=key.id), bench.issuers.issue(FOREIGN)
    read, checked = SIGNER.read, []
    monkeypatch.setattr(SIGNER, "read", lambda text, *, now: checked.append(text) or read(text, now=now))
    for seconds in (0, 10, 29.9):
        bench.clock.seconds = seconds
        await bench.ask(ours)
        await bench.ask(foreign)
        assert (len(checked), bench.issuers.reads) == (1, 1)
    bench.issuers.tokens.clear()  # withdrawn
    assert (await bench.ask(foreign)).end_user == "eve"
    bench.clock.seconds = 30
    await refused(bench, foreign)
    await bench.ask(ours)
    assert (len(checked), bench.issuers.reads) == (2, 2)


async def test_of_another_signature_nothing_is_believed(bench):
    """What was remembered is the whole token: another end of it is another token, and refused each time."""
    token = bench.token(key_id=bench.store.add_key().id)
    await bench.ask(token)
    for text in (token[:-4] + "AAAA", token + ".", token + "A", token.upper()):
        await refused(bench, text)
        await refused(bench, text)
    await bench.ask(token)


# --- tokens of identity providers -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["acme", "tn_2"])
async def test_a_foreign_token_is_of_the_tenant_that_it_names(bench, name):
    """By external id or by id; the limits are that tenant's, the scopes, the user and the end the token's."""
    bench.store.add_tenant("tn_2", "acme", max_streams=7, default_model="small")
    token = bench.issuers.issue(replace(FOREIGN, tenant=name))
    assert await bench.ask(token) == Principal(
        scopes=CHAT,
        tenant_id="tn_2",
        token_id="f1",
        end_user="eve",
        limits=(Limit("tenant", "tn_2", 7),),
        default_model="small",
        expires_at=NOW + 600,
    )


async def test_a_foreign_token_of_a_tenant_that_does_not_hold_is_refused(bench):
    """Unknown, or suspended; once the tenant is there, or active again, it holds."""
    token = bench.issuers.issue(FOREIGN)
    await refused(bench, token)
    bench.store.add_tenant("tn_2", "acme")
    bench.store.note("tenant", "tn_2")
    await bench.later(0.1)
    assert (await bench.ask(token)).tenant_id == "tn_2"
    bench.store.change_tenant("tn_2", active=False)
    await bench.later(0.1)
    await refused(bench, token)


@pytest.mark.parametrize(
    ("end_user", "user"), [("eve", "eve of https://idp.example"), (None, "f1 of https://idp.example")]
)
async def test_a_foreign_admin_belongs_to_no_tenant(bench, end_user, user):
    """And may do what an admin does, nothing of a tenant's, whatever else the token says."""
    claims = replace(FOREIGN, tenant=None, scopes=frozenset(Scope), end_user=end_user)
    assert await bench.ask(bench.issuers.issue(claims)) == Principal(
        scopes=ADMIN, token_id="f1", user=user, expires_at=NOW + 600
    )
    assert [call for call in bench.store.calls if call[0] not in {"feed", "revoked"}] == []


# --- revoked tokens ---------------------------------------------------------------------------------


async def test_a_token_is_revoked_within_its_tenant_alone(bench):
    """Two issuers may give out the same `jti`; a tenant that revokes one leaves the other's alone."""
    for tenant in ("tn_1", "tn_2"):
        bench.store.add_tenant(tenant)
    tokens = {name: bench.issuers.issue(replace(FOREIGN, tenant=name)) for name in ("tn_1", "tn_2")}
    admin = bench.issuers.issue(replace(FOREIGN, tenant=None, scopes=ADMIN))
    for token in (*tokens.values(), admin):
        await bench.ask(token)
    bench.store.revoke_token("tn_1/f1")
    await bench.later(0.1)
    await refused(bench, tokens["tn_1"])
    await bench.ask(tokens["tn_2"])
    await bench.ask(admin)
    bench.store.revoke_token("/f1")
    await bench.later(0.1)
    await refused(bench, admin)
    await bench.ask(tokens["tn_2"])


async def test_a_revoked_token_does_not_take_its_key_with_it(bench):
    """A bought one and an admin's: refused, also by a worker that starts later; others of the same go on."""
    key = bench.store.add_key()
    bench.store.add_user()
    for who, tenant in (({"key_id": key.id}, "tn_1"), ({"user": "ann@gate", "scopes": ADMIN}, "")):
        gone, other = bench.token(**who), bench.token(**who)
        caller = await bench.ask(gone)
        bench.store.revoke_token(f"{tenant}/{caller.token_id}")
        await bench.later(0.1)
        await refused(bench, gone)
        await bench.ask(other)
        started_later = Bench()
        started_later.store = started_later.memory._store = bench.store
        await refused(started_later, gone)
    assert (await bench.ask(key)).key_id == key.id
