"""Whose streams end when accounts change, and what an allowance lets through; ASGI and accounts by hand."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from api.core.booking import Ended, Happening
from api.flow.providers import Providers
from api.flow.tend import tick
from api.flow.watch import Watch
from api.ports import AccountsUnavailable
from auth.memory import token_name
from auth.principal import Limit, Principal, StoredTenant
from tests.support.hand import DONE, FINISH, USAGE, Hand, token


async def flowing(hand: Hand) -> asyncio.Task[None]:
    """A stream that has delivered one token and waits for the next."""
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until('data: {"token":"water"}')
    return running


@pytest.mark.parametrize(
    ("kind", "name"),
    [("key", "k1"), ("token", token_name("tn_1", "jti"))],
)
async def test_a_change_of_its_credential_cuts_a_stream(kind: str, name: str) -> None:
    """P9: by its key or its token; a well-formed error ends it, and its tokens are settled."""
    hand = Hand()
    hand.caller = replace(hand.caller, token_id="jti")
    running = await flowing(hand)
    hand.authenticator.revoked = True
    hand.authenticator.change(kind, name)
    await Watch(hand.gate).look()
    await running
    assert json.loads(hand.body.split(b"data: ")[-1])["code"] == "revoked"
    [event] = hand.ledger.events
    assert (event.ended, event.cause, event.usage.output_tokens) == (Ended.CUT, Happening.REVOKED, 1)
    assert not hand.limiter.taken


@pytest.mark.parametrize("state", ["suspended", "gone", "active"])
async def test_one_look_at_a_tenant_decides_for_all_of_its_streams(state: str) -> None:
    """P9: suspended or deleted, they are cut without a look-up for each key; else no key is asked for."""
    hand = Hand()
    running = await flowing(hand)
    hand.authenticator.revoked = True  # whoever asked for the key would cut the stream
    if state != "gone":
        hand.authenticator.tenants["tn_1"] = StoredTenant("tn_1", state == "active", max_streams=1)
    hand.authenticator.change("tenant", "tn_1")
    await Watch(hand.gate).look()
    hand.upstream.feed(FINISH + USAGE + DONE)
    await running
    cause = Happening.TERMINAL if state == "active" else Happening.REVOKED
    assert hand.ledger.events[0].cause is cause


@pytest.mark.parametrize(
    ("kind", "name"),
    [("key", "k2"), ("tenant", "tn_2"), ("token", token_name("tn_2", "jti")), ("user", "k1")],
)
async def test_a_change_of_anothers_credential_concerns_nobody_else(kind: str, name: str) -> None:
    """Only what changed is looked at again: a stream of another key goes on, and costs no look-up."""
    hand = Hand()
    hand.caller = replace(hand.caller, token_id="jti")
    running = await flowing(hand)
    hand.authenticator.revoked = True  # whoever asked would be cut
    hand.authenticator.change(kind, name)
    await Watch(hand.gate).look()
    hand.upstream.feed(FINISH + USAGE + DONE)
    await running
    assert hand.ledger.events[0].ended is Ended.FINISHED


async def test_a_change_that_leaves_the_credential_good_cuts_nothing() -> None:
    """A key that was only renamed: the stream goes on."""
    hand = Hand()
    running = await flowing(hand)
    hand.authenticator.change("key", "k1")
    await Watch(hand.gate).look()
    hand.upstream.feed(FINISH + USAGE + DONE)
    await running
    assert hand.ledger.events[0].ended is Ended.FINISHED


async def test_a_change_is_not_forgotten_while_accounts_are_away() -> None:
    """The database goes away between the news and the second look: the stream is cut when it is back."""
    hand = Hand()
    running = await flowing(hand)
    watch = Watch(hand.gate)
    hand.authenticator.revoked = True
    hand.authenticator.change("key", "k1")
    refresh = hand.authenticator.refresh
    looks = iter([None, AccountsUnavailable("away")])

    async def away_at_the_second() -> None:
        if (fault := next(looks, None)) is not None:
            raise fault

    hand.authenticator.refresh = away_at_the_second  # type: ignore[method-assign]
    with pytest.raises(AccountsUnavailable):
        await watch.look()
    assert not running.done()
    hand.authenticator.refresh = refresh  # type: ignore[method-assign]
    await watch.look()
    await running
    assert hand.ledger.events[0].cause is Happening.REVOKED


async def test_a_key_revoked_during_admission_opens_nothing() -> None:
    """The change is noticed after authentication and before the stream is watched: 401, and no booking."""
    hand = Hand()
    hand.limiter.hold = asyncio.Event()
    running = hand.start()
    await hand.log.until("acquire")
    hand.authenticator.revoked = True
    hand.authenticator.change("key", "k1")
    await Watch(hand.gate).look()
    hand.limiter.hold.set()
    await running
    assert (hand.status, json.loads(hand.body)["error"]["code"]) == (401, "revoked")
    assert hand.log.in_order("acquire", "release")
    assert "book" not in hand.log
    assert "open" not in hand.log


async def test_accounts_that_go_away_during_admission_let_nobody_in() -> None:
    """Something changed and it cannot be asked what: 503, and nothing is opened."""
    hand = Hand()
    hand.limiter.hold = asyncio.Event()
    running = hand.start()
    await hand.log.until("acquire")
    hand.authenticator.change("key", "another")
    hand.authenticator.fault = AccountsUnavailable("away")
    hand.limiter.hold.set()
    await running
    assert (hand.status, json.loads(hand.body)["error"]["code"]) == (503, "accounts_unavailable")
    assert "open" not in hand.log
    assert not hand.limiter.taken


async def test_an_expired_credential_cuts_its_stream() -> None:
    """The tick after `expires_at` ends it with an error event; the one before does not."""
    hand = Hand()
    now = hand.gate.clock.unix()
    hand.caller = replace(hand.caller, expires_at=now + 3600)
    running = await flowing(hand)
    await tick(hand.gate)
    assert not running.done()
    [stream] = hand.gate.live.values()
    stream.caller = replace(stream.caller, expires_at=now - 1)
    await tick(hand.gate)
    await running
    assert json.loads(hand.body.split(b"data: ")[-1])["code"] == "expired"
    assert hand.ledger.events[0].cause is Happening.EXPIRED


async def test_one_look_that_fails_keeps_no_other_from_being_cut() -> None:
    """Of several streams one cannot be looked at: the others are cut now, and it is when it can be."""
    hands = [Hand() for _ in range(3)]
    gate, running = hands[0].gate, []
    for number, hand in enumerate(hands):
        gate.providers, hand.gate = Providers.of(hand.upstream), gate
        limits = (Limit("tenant", "tn_1", 3),)
        hand.caller = replace(hand.caller, key_id=f"k{number}", limits=limits)
        running.append(await flowing(hand))
    authenticator = hands[0].authenticator
    authenticator.revoked = True
    again = authenticator.again

    async def away_for_the_first(principal: Principal) -> Principal:
        if principal.key_id == "k0":
            raise AccountsUnavailable("away")
        return await again(principal)

    authenticator.again = away_for_the_first  # type: ignore[method-assign]
    watch = Watch(gate)
    for number in range(3):
        authenticator.change("key", f"k{number}")
    with pytest.raises(AccountsUnavailable):
        await watch.look()
    await asyncio.wait(running[1:])
    assert not running[0].done()
    authenticator.again = again  # type: ignore[method-assign]
    await watch.look()
    await asyncio.wait(running)
    assert [event.cause for event in hands[0].ledger.events] == [Happening.REVOKED] * 3
