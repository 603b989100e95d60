"""Limits as callers meet them: headers, budgets, whose limit it is, shadows, changes; two workers, one Redis.

How the official SDK lives with them, and what many greedy streams make of a budget, is in test_limits_sdk.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
import redis as sync_redis

from tests.support.wire import WireClient
from tests.wire import people
from tests.wire.people import buy, call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.support.gates import GateProcess
    from tests.wire.people import Line

PROMPT_TOKENS = 8
CHAT = "/v1/chat/completions"
DURATION = r"(\d+ms|\d+(\.\d+)?s|\d+m\d+(\.\d+)?s)"
NANO_PER_INPUT, NANO_PER_OUTPUT = 1000, 2000
"""What the scripted model costs for a token."""


def ask(gate: GateProcess, credential: str, tokens: int = 3, **fields: Any) -> httpx2.Response:
    """OpenAI's way to ask, streamed and read to its end."""
    return gate.http("POST", CHAT, credential, json=body(tokens, **fields))


def body(tokens: int = 3, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": f"scripted?tokens={tokens}&pace_ms=0", "messages": messages, "stream": True} | fields


def limited(gate: GateProcess, **fields: Any) -> tuple[str, str]:
    """A tenant with those fields, and a key of it."""
    tenant = new_tenant(gate, **fields)
    return tenant, new_key(gate, tenant)["key"]


def statuses(gate: GateProcess, credential: str, count: int, **fields: Any) -> list[int]:
    """What so many requests in a row are answered."""
    return [ask(gate, credential, **fields).status_code for _ in range(count)]


def states(gate: GateProcess, credential: str, path: str = "/v1/limits") -> dict[tuple[str, str], Any]:
    """What is left, by whose limit it is and its name."""
    return {(one["of"], one["limit"]): one for one in call(gate, "GET", path, credential)}


def remaining(gate: GateProcess, credential: str, limit: str, of: str = "tenant") -> int:
    return int(states(gate, credential)[of, limit]["remaining"])


# --- headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_says_what_is_left(gate: GateProcess, stream: bool) -> None:
    """On a 200, streamed or not: OpenAI's headers and the IETF draft's, for each limit that binds."""
    limits = {"requests_per_minute": 5, "tokens_per_minute": 6000, "tokens_per_day": 50_000}
    _, key = limited(gate, max_streams=7, limits=limits)
    said = ask(gate, key, stream=stream, max_tokens=3).headers
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert said["x-ratelimit-limit-tokens"] == "6000"
    assert int(said["x-ratelimit-remaining-tokens"]) == 6000 - PROMPT_TOKENS - 3  # the three were reserved
    assert said["x-ratelimit-reset-requests"] == "12s"
    for name in ("requests", "tokens"):
        assert re.fullmatch(DURATION, said[f"x-ratelimit-reset-{name}"])
    assert said["ratelimit-policy"].split(", ") == [
        '"streams";q=7;qu="concurrent-requests"',
        '"requests";q=5;w=60',
        '"tokens";q=6000;w=60;qu="tokens"',
        '"tokens-day";q=50000;w=86400;qu="tokens"',
    ]
    streams, requests, tokens, day = said["ratelimit"].split(", ")
    assert (streams, requests, tokens) == ('"streams";r=6', '"requests";r=4;t=12', '"tokens";r=5989;t=1')
    assert re.fullmatch(r'"tokens-day";r=49989;t=\d+', day)
    assert not {"retry-after", "retry-after-ms", "x-should-retry"} & set(said)


def test_a_refusal_by_a_rate_says_when_to_come_back(gate: GateProcess) -> None:
    """429 with the same headers, Retry-After in seconds and milliseconds, spread by a quarter at most."""
    _, key = limited(gate, limits={"requests_per_minute": 2})
    assert statuses(gate, key, 2) == [200, 200]
    refused = ask(gate, key)
    assert people.error_of(refused) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    said = refused.headers
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == ("2", "0")
    assert '"requests";r=0;t=' in said["ratelimit"]
    assert '"requests";q=2;w=60' in said["ratelimit-policy"]
    millis, seconds = int(said["retry-after-ms"]), int(said["retry-after"])
    assert 1000 < millis <= 1.25 * 30_000  # one in thirty seconds, and some of them are gone
    assert 0 <= seconds * 1000 - millis < 1000
    assert "x-should-retry" not in said


async def test_a_refusal_by_the_cap_says_so(gate: GateProcess) -> None:
    """429 with `r=0` for streams, a Retry-After, and nothing that keeps an SDK from trying again."""
    _, key = await asyncio.to_thread(limited, gate, max_streams=1)
    held = await people.held(gate, key)
    refused = await asyncio.to_thread(ask, gate, key)
    assert people.error_of(refused) == (429, "rate_limit_exceeded")
    assert refused.headers["ratelimit-policy"] == '"streams";q=1;qu="concurrent-requests"'
    assert refused.headers["ratelimit"] == '"streams";r=0'
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-should-retry" not in refused.headers
    await people.leave([held])


def test_what_can_never_be_granted_is_not_to_be_tried_again(gate: GateProcess) -> None:
    """A prompt larger than a minute's tokens: 429 with `x-should-retry: false`, and it does not wait."""
    _, key = limited(gate, limits={"tokens_per_minute": PROMPT_TOKENS}, max_waiters=5)
    refused = ask(gate, key)
    assert people.error_of(refused) == (429, "rate_limit_exceeded")
    assert (refused.headers["x-should-retry"], refused.headers["retry-after"]) == ("false", "86400")
    assert refused.headers["x-ratelimit-remaining-tokens"] == str(PROMPT_TOKENS)  # nothing was taken


# --- budgets ----------------------------------------------------------------------------------------


def zone_at_noon() -> str:
    """A time zone in which no day, and so no month, ends within ten hours."""
    ahead = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-ahead:+d}"  # POSIX: the sign is the other way round


def seconds_until_end(zone: str, period: str) -> float:
    """By the calendar alone."""
    now = datetime.now(ZoneInfo(zone))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = midnight + timedelta(days=1)
    if period == "month":
        end = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (end - now).total_seconds()


@pytest.mark.parametrize("period", ["day", "month"])
@pytest.mark.parametrize("unit", ["tokens", "nano_dollars"])
async def test_a_budget_that_is_used_up_refuses_until_its_period_ends(
    gate: GateProcess, period: str, unit: str
) -> None:
    """429 insufficient_quota; Retry-After is the rest of the tenant's own day or month."""
    zone, amount = zone_at_noon(), PROMPT_TOKENS + 4
    if unit == "nano_dollars":
        amount = PROMPT_TOKENS * NANO_PER_INPUT + 4 * NANO_PER_OUTPUT
    tenant, key = limited(gate, time_zone=zone, limits={f"{unit}_per_{period}": amount}, max_waiters=5)
    assert ask(gate, key, 4).status_code == 200
    refused = ask(gate, key, 4)
    left = seconds_until_end(zone, period)
    assert people.error_of(refused) == (429, "insufficient_quota")
    assert refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert abs(int(refused.headers["retry-after"]) - left) < 5
    assert abs(int(refused.headers["retry-after-ms"]) - 1000 * left) < 5000
    [_, budget] = call(gate, "GET", f"/admin/tenants/{tenant}/limits", gate.admin)
    assert (budget["limit"], budget["amount"], budget["remaining"]) == (f"{unit}_per_{period}", amount, 0)
    assert abs(budget["reset_seconds"] - left) < 5
    other = new_key(gate, tenant)["key"]
    assert people.error_of(ask(gate, other))[0] == 429  # it is the tenant's, whatever the key
    path, none = f"/admin/tenants/{tenant}", {f"{unit}_per_{period}": None}
    call(gate, "PATCH", path, gate.admin, json={"limits": none})
    await people.until(lambda: ask(gate, key).status_code == 200)


def test_what_redis_forgot_of_a_budget_the_ledger_knows(gate: GateProcess) -> None:
    """All that Redis had of a tenant is gone: what is left is as before, in the list and for a request."""
    tenant, key = limited(gate, limits={"tokens_per_day": 3 * PROMPT_TOKENS})
    assert ask(gate, key, PROMPT_TOKENS).status_code == 200
    with sync_redis.Redis.from_url(gate.environment["REDIS_URL"]) as redis:
        assert redis.delete(*redis.keys(f"sg:{{{tenant}}}:*")) >= 1
    assert remaining(gate, key, "tokens_per_day") == PROMPT_TOKENS
    assert people.error_of(ask(gate, key)) == (429, "insufficient_quota")
    assert remaining(gate, key, "tokens_per_day") == PROMPT_TOKENS


# --- whose limit it is ------------------------------------------------------------------------------


def test_a_key_has_limits_of_its_own(gate: GateProcess) -> None:
    """The key that is over its limit is refused, and named; another key of the tenant is not."""
    tenant = new_tenant(gate)
    tight = new_key(gate, tenant, limits={"requests_per_minute": 1})["key"]
    wide = new_key(gate, tenant)["key"]
    assert statuses(gate, tight, 2) == [200, 429]
    assert "1 requests per minute with this key" in ask(gate, tight).json()["error"]["message"]
    assert statuses(gate, wide, 2) == [200, 200]
    token, _ = buy(gate, tight)
    assert ask(gate, token).status_code == 429  # bought with it, bound by it


def test_the_tightest_limit_wins(gate: GateProcess) -> None:
    """Of a tenant's, a key's and an end user's, whichever has least left: it refuses, and it is told of."""
    tenant = new_tenant(gate, limits={"requests_per_minute": 3}, end_user_limits={"requests_per_minute": 1})
    key = new_key(gate, tenant, limits={"requests_per_minute": 2})["key"]
    said = ask(gate, key, user="ann").headers
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert "for this end user" in ask(gate, key, user="ann").json()["error"]["message"]
    assert ask(gate, key).headers["x-ratelimit-limit-requests"] == "2"
    assert "with this key" in ask(gate, key).json()["error"]["message"]
    other = new_key(gate, tenant)["key"]
    assert statuses(gate, other, 2) == [200, 429]  # the tenant's third was the last


def test_each_end_user_has_limits_of_its_own(gate: GateProcess) -> None:
    """By OpenAI's `user` or `safety_identifier`, the newer name first, through whichever key it comes."""
    tenant = new_tenant(gate, end_user_limits={"requests_per_minute": 2, "max_streams": 5})
    key, other = (new_key(gate, tenant)["key"] for _ in range(2))
    assert statuses(gate, key, 1, user="ann") == [200]
    assert statuses(gate, other, 1, safety_identifier="ann", user="bob") == [200]
    refused = ask(gate, key, user="ann")
    assert people.error_of(refused) == (429, "rate_limit_exceeded")
    assert "for this end user" in refused.json()["error"]["message"]
    assert statuses(gate, key, 3, user="bob") == [200, 200, 429]
    assert statuses(gate, key, 3) == [200] * 3  # nobody in particular
    assert states(gate, key)[("tenant", "max_streams")]["remaining"] == 50
    path = "/v1/limits?end_user=ann"
    assert states(gate, key, path)["user", "requests_per_minute"]["remaining"] == 0
    assert states(gate, key, "/v1/limits?end_user=eve")["user", "requests_per_minute"]["remaining"] == 2


async def test_a_tokens_end_user_is_not_for_the_body_to_say(gate: GateProcess) -> None:
    """The credential wins: whatever `user` is sent, it is carol who is counted, and who is on the ledger."""
    tenant = await asyncio.to_thread(new_tenant, gate, end_user_limits={"requests_per_minute": 2})
    key = new_key(gate, tenant)["key"]
    token, _ = buy(gate, key, end_user="carol")
    assert statuses(gate, token, 1, user="dave") == [200]
    assert statuses(gate, token, 2, safety_identifier="eve") == [200, 429]
    assert statuses(gate, key, 1, user="carol") == [429]
    assert statuses(gate, key, 1, user="dave") == [200]
    events = await people.settled(gate, tenant, 3)
    assert [event["end_user"] for event in events] == ["carol", "carol", "dave"]


# --- together, or not at all ------------------------------------------------------------------------


async def test_a_refusal_by_one_limit_burns_none_of_the_others(gate: GateProcess) -> None:
    """LiteLLM #39309: who is refused for its streams has its requests, its tokens and its budget still."""
    limits = {"requests_per_minute": 3, "tokens_per_minute": 6000, "tokens_per_day": 9000}
    _, key = await asyncio.to_thread(limited, gate, max_streams=1, limits=limits)
    held = await people.held(gate, key)
    before = states(gate, key)
    assert statuses(gate, key, 5) == [429] * 5
    after = states(gate, key)
    for name in limits:
        assert after["tenant", name]["remaining"] >= before["tenant", name]["remaining"], name
    assert after["tenant", "requests_per_minute"]["remaining"] == 2
    await people.leave([held])
    await people.until(lambda: remaining(gate, key, "max_streams") == 1)
    assert statuses(gate, key, 3) == [200, 200, 429]
    assert remaining(gate, key, "max_streams") == 1  # nor does a rate's refusal keep a slot
    assert remaining(gate, key, "tokens_per_day") == 9000 - 18 - 2 * (PROMPT_TOKENS + 3)


# --- shadows ----------------------------------------------------------------------------------------


async def test_a_shadow_refuses_nothing_and_counts(gate: GateProcess) -> None:
    """Streams, requests and tokens over limits in shadow all get through; `would_refuse` says how many."""
    names = ["max_streams", "requests_per_minute", "tokens_per_day"]
    limits = {"requests_per_minute": 2, "tokens_per_day": 20, "shadow": names}
    tenant, key = await asyncio.to_thread(limited, gate, max_streams=1, limits=limits)
    held = await people.held(gate, key)  # its ten tokens and 256 on credit are over 20 by themselves
    assert statuses(gate, key, 3) == [200] * 3
    seen = states(gate, key)
    assert {name: seen["tenant", name]["would_refuse"] for name in names} == {
        "max_streams": 3,
        "requests_per_minute": 2,
        "tokens_per_day": 3,
    }
    assert all(seen["tenant", name]["shadow"] for name in names)
    assert "ratelimit" not in ask(gate, key).headers  # a caller is not told of what does not bind it
    call(gate, "PATCH", f"/admin/tenants/{tenant}", gate.admin, json={"limits": {"shadow": []}})
    await people.until(lambda: ask(gate, key).status_code == 429)
    await people.leave([held])


# --- what is left, and changes ----------------------------------------------------------------------


def test_callers_see_the_limits_that_bind_them(gate: GateProcess) -> None:
    """A key its tenant's and its own, a token its own as well, an end user's where it is named."""
    fields = {"limits": {"tokens_per_day": 1000}, "end_user_limits": {"tokens_per_month": 500}}
    tenant = new_tenant(gate, max_streams=9, **fields)
    key = new_key(gate, tenant, max_streams=3, limits={"requests_per_minute": 1})["key"]
    token, _ = buy(gate, key, end_user="ann", max_streams=2, max_tokens=400)
    assert ask(gate, token, 5).status_code == 200
    used = PROMPT_TOKENS + 5
    of_tenant = {("tenant", "max_streams"): (9, 9), ("tenant", "tokens_per_day"): (1000, 1000 - used)}
    of_key = of_tenant | {("key", "max_streams"): (3, 3), ("key", "requests_per_minute"): (1, 0)}
    of_user = {("user", "tokens_per_month"): (500, 500 - used)}
    of_token = {("token", "max_streams"): (2, 2), ("token", "tokens_in_all"): (400, 400 - used)}

    def seen(credential: str, path: str) -> dict[tuple[str, str], tuple[int, int]]:
        found = states(gate, credential, path)
        for (_, name), one in found.items():
            assert (one["reset_seconds"] is None) == (name in {"max_streams", "tokens_in_all"})
        return {name: (one["amount"], one["remaining"]) for name, one in found.items()}

    assert seen(key, "/v1/limits") == of_key
    assert seen(key, "/v1/limits?end_user=ann") == of_key | of_user
    assert seen(token, "/v1/limits") == of_key | of_user | of_token
    assert seen(gate.admin, f"/admin/tenants/{tenant}/limits") == of_tenant
    assert gate.http("GET", f"/admin/tenants/{tenant}/limits", key).status_code == 403
    assert gate.http("GET", "/admin/tenants/tn_nobody/limits", gate.admin).status_code == 404


def post(line: Line, credential: str) -> int:
    """The status of a request on a line to one worker."""
    headers = {"authorization": f"Bearer {credential}", "content-type": "application/json"}
    line._http.request("POST", CHAT, json.dumps(body()), headers)
    answer = line._http.getresponse()
    answer.read()
    return answer.status


@contextmanager
def two_lines(gate: GateProcess, key: str) -> Iterator[list[Line]]:
    """Lines to both workers, each of which knows the key already."""
    with ExitStack() as stack:
        both = stack.enter_context(people.lines(gate))
        assert [post(line, key) for line in both] == [200, 200]
        yield both


@pytest.mark.parametrize("whose", ["tenants", "keys"])
async def test_a_changed_limit_holds_on_every_worker_within_a_second(gate: GateProcess, whose: str) -> None:
    """For new requests, and the same when it is taken away; a stream that runs is left alone."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    issued = new_key(gate, tenant)
    path = f"/admin/{whose}/{tenant if whose == 'tenants' else issued['id']}"
    held = await people.held(gate, issued["key"])
    with two_lines(gate, issued["key"]) as both:
        answered = 1 + len(both)
        for amount, status in ((1, 429), (None, 200)):
            call(gate, "PATCH", path, gate.admin, json={"limits": {"tokens_per_minute": amount}})
            since = time.monotonic()
            for line in both:
                while True:
                    asked = time.monotonic() - since
                    answer = await asyncio.to_thread(post, line, issued["key"])
                    answered += answer == 200
                    if answer == status:
                        break
                    assert asked < people.BOUND_SECONDS, "a worker does not know yet"
    await people.leave([held])
    assert [e["cause"] for e in await people.settled(gate, tenant, answered)].count("client_left") == 1


async def test_a_refusal_is_on_no_ledger(gate: GateProcess) -> None:
    """Twenty refusals at once: no booking, no event, no token."""
    tenant, key = await asyncio.to_thread(limited, gate, limits={"tokens_per_minute": 1})
    clients = [await WireClient.post(gate.url, CHAT, body(), key=key) for _ in range(20)]
    assert [await client.head() for client in clients] == [429] * 20
    for client in clients:
        await client.close()
    assert await people.ledger_events(gate, tenant) == []
    assert call(gate, "GET", f"/admin/streams?tenant={tenant}", gate.admin) == []
