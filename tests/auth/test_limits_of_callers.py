"""Which limits bind a caller: its tenant's, its key's, its token's, and its end user's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from auth.principal import LIMITS, Limit, Principal, StoredKey, StoredTenant, Terms
from tests.auth.accounts import CHAT, FOREIGN, Bench

OF_TENANT = (
    Limit("tenant", "tn_1", 100, "tokens_per_minute"),
    Limit("tenant", "tn_1", 9000, "tokens_per_day", shadow=True),
)
OF_USER = (Limit("user", "", 2), Limit("user", "", 50, "tokens_per_day", shadow=True))
TERMS = Terms("Asia/Tokyo", 5, 7, 3, OF_USER)


def of_user(name: str) -> tuple[Limit, ...]:
    """What binds each end user, as it binds this one."""
    return (Limit("user", name, 2), Limit("user", name, 50, "tokens_per_day", shadow=True))


@pytest.fixture
def bench() -> Bench:
    """A tenant with limits of every kind."""
    bench = Bench()
    bench.store.add_tenant("tn_1", "acme", max_streams=9, more_limits=OF_TENANT, terms=TERMS)
    return bench


def of_key(key_id: str) -> Limit:
    """The key's own."""
    return Limit("key", key_id, 60, "requests_per_minute")


def test_a_limit_is_on_streams_and_refuses_unless_it_is_said():
    """And its name stands in LIMITS, each of them once."""
    assert Limit("tenant", "tn_1", 9) == ("tenant", "tn_1", 9, "max_streams", False)
    assert len(set(LIMITS)) == len(LIMITS)
    assert {limit.name for limit in (*OF_TENANT, *OF_USER)} <= set(LIMITS)


@pytest.mark.parametrize("shadow", [False, True])
def test_the_cap_on_streams_is_one_of_the_limits(shadow):
    """First of all, and in shadow where that was decided; a key without one has the others alone."""
    tenant = StoredTenant("tn_1", active=True, max_streams=9, more_limits=OF_TENANT, streams_in_shadow=shadow)
    assert tenant.limits == (Limit("tenant", "tn_1", 9, "max_streams", shadow), *OF_TENANT)
    more = (of_key("k"),)
    key = StoredKey("k", tenant, b"", CHAT, max_streams=3, more_limits=more, streams_in_shadow=shadow)
    assert key.limits == (Limit("key", "k", 3, "max_streams", shadow), *more)
    assert replace(key, max_streams=None).limits == more
    assert replace(key, max_streams=None, more_limits=()).limits == ()


async def test_a_key_has_its_tenants_limits_and_its_own(bench):
    """The tenant's first; its end users' bind nobody yet, but are known."""
    plain = bench.store.add_key()
    own = bench.store.add_key(max_streams=3)
    bench.store.change_key(own, more_limits=(of_key(own.id),))
    tenant = (Limit("tenant", "tn_1", 9), *OF_TENANT)
    assert (await bench.ask(plain)).limits == tenant
    caller = await bench.ask(own)
    assert caller.limits == (*tenant, Limit("key", own.id, 3), of_key(own.id))
    assert (caller.terms, caller.end_user) == (TERMS, None)


async def test_a_bought_token_has_all_of_its_keys_and_its_own_and_its_users(bench):
    """Cap and allowance are the token's, the last are its end user's; each only where there is one."""
    key = bench.store.add_key()
    bench.store.change_key(key, more_limits=(of_key(key.id),))
    wider = (Limit("tenant", "tn_1", 9), *OF_TENANT, of_key(key.id))
    caller = await bench.ask(bench.token(key_id=key.id))
    assert (caller.limits, caller.terms) == (wider, TERMS)
    caller = await bench.ask(bench.token(key_id=key.id, end_user="eve", max_streams=1, max_tokens=500))
    own = (
        Limit("token", caller.token_id, 1),
        Limit("token", caller.token_id, 500, "tokens_in_all"),
    )
    assert caller.limits == (*wider, *own, *of_user("eve"))


async def test_a_providers_token_has_its_tenants_limits_and_its_users(bench):
    """Whoever comes with the company's own JWT is one of its end users, or nobody in particular."""
    tenant = (Limit("tenant", "tn_1", 9), *OF_TENANT)
    caller = await bench.ask(bench.issuers.issue(FOREIGN))
    assert (caller.limits, caller.terms) == ((*tenant, *of_user("eve")), TERMS)
    caller = await bench.ask(bench.issuers.issue(replace(FOREIGN, end_user=None)))
    assert caller.limits == tenant


async def test_an_admin_has_no_limits(bench):
    """No tenant's bind somebody who is of no tenant."""
    bench.store.add_user()
    caller = await bench.ask(bench.token(user="ann@gate"))
    assert (caller.limits, caller.terms) == ((), Terms())


async def test_limits_that_were_changed_bind_the_next_request(bench):
    """The tenant's as well as the key's: neither is kept beyond the feed's word."""
    key = bench.store.add_key()
    await bench.ask(key)
    bench.store.change_tenant(more_limits=(), terms=Terms())
    bench.store.change_key(key, more_limits=(of_key(key.id),))
    await bench.later(0.1)
    caller = await bench.ask(key)
    assert caller.limits == (Limit("tenant", "tn_1", 9), of_key(key.id))
    assert caller.terms == Terms()


# --- for whom it acts -------------------------------------------------------------------------------


async def test_an_end_user_whom_a_request_names_gets_what_binds_each(bench):
    """Its own of each limit, behind all the others; nothing else of the caller changes."""
    key = bench.store.add_key()
    caller = await bench.ask(key)
    acting = caller.acting_for("bob")
    assert acting.limits == (*caller.limits, *of_user("bob"))
    assert replace(acting, limits=caller.limits, end_user=None) == caller
    assert acting.end_user == "bob"
    assert caller.acting_for("eve").limits == (*caller.limits, *of_user("eve"))


@pytest.mark.parametrize("how", ["bought", "foreign"])
async def test_the_end_user_of_a_credential_wins(bench, how):
    """Nobody spends on another's name: what a request calls itself changes nothing then."""
    key = bench.store.add_key()
    token = bench.token(key_id=key.id, end_user="eve") if how == "bought" else bench.issuers.issue(FOREIGN)
    caller = await bench.ask(token)
    assert caller.acting_for("bob") == caller
    assert caller.end_user == "eve"
    assert caller.limits[-2:] == of_user("eve")


async def test_an_end_user_is_named_once(bench):
    """The second name does not add a second end user's limits."""
    caller = (await bench.ask(bench.store.add_key())).acting_for("bob")
    assert caller.acting_for("eve") == caller


def test_where_no_limits_are_set_for_end_users_none_bind_them():
    """The name is kept for the ledger all the same."""
    caller = Principal(scopes=CHAT, limits=(Limit("tenant", "tn_1", 9),))
    acting = caller.acting_for("bob")
    assert (acting.end_user, acting.limits) == ("bob", caller.limits)
