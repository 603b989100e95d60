"""Tokens of a company's own identity providers, over the wire: two workers, key sets fetched over HTTP.

One provider signs with RS256, one with ES256. What they vouch for gets in as the tenant they name; what is
hostile gets one answer, and leaves nothing of itself in the log.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from auth import keys
from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.openid import KeyRing, OpenIDProvider, base64url, compact, hmac_signed
from tests.support.servers import RedisServer, running
from tests.wire import people
from tests.wire.people import buy, call, chat, error_of, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import PostgresServer, ScriptedProcess

SCOPES = {"llm:use": "chat", "llm:report": "usage:read"}
MODELS = "/v1/models"


@pytest.fixture(scope="module")
def rsa() -> Iterator[OpenIDProvider]:
    """Signs with RS256; its next key is published before the gate starts."""
    with OpenIDProvider() as provider:
        provider.announce()
        yield provider


@pytest.fixture(scope="module")
def ec() -> Iterator[OpenIDProvider]:
    """Signs with ES256."""
    with OpenIDProvider("ES256") as provider:
        yield provider


@pytest.fixture(scope="module")
def thief() -> Iterator[OpenIDProvider]:
    """Serves the keys of an attacker; nobody should ask."""
    with OpenIDProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    scripted: ScriptedProcess,
    rsa: OpenIDProvider,
    ec: OpenIDProvider,
) -> Iterator[GateProcess]:
    """Two workers that trust the two providers, and log all they ever would."""
    directory = tmp_path_factory.mktemp("gate")
    issuers = [provider.config(scope_map=SCOPES) for provider in (rsa, ec)]
    (directory / "issuers.json").write_text(json.dumps(issuers))
    with running(RedisServer()) as redis:
        redis.start()
        with gate_process(
            directory,
            DATABASE_URL=postgres_server.new_database(),
            REDIS_URL=redis.url,
            OPENAI_BASE_URL=f"{scripted.url}/v1",
            WEB_CONCURRENCY="2",
            DRAIN_SECONDS="1",
            REDIS_TIMEOUT_SECONDS="5",  # the tests share two cores with the servers
            LOG_LEVEL="debug",
            ISSUERS_FILE=str(directory / "issuers.json"),
            SECRET_KEY=SECRET_KEY,
            ADMIN_PASSWORD="correct horse battery staple",
        ) as process:
            with people.lines(process):  # both are up
                pass
            yield process


@pytest.fixture
def company(gate: GateProcess) -> tuple[str, str]:
    """A tenant, and what its company calls it."""
    name = f"acme-{uuid.uuid4().hex}"
    return new_tenant(gate, external_id=name), name


def signed(provider: KeyRing, company: str, **changes: Any) -> str:
    """A token that holds now, each with an id of its own."""
    fine = {"tenant": company, "scope": "openid llm:use", "jti": uuid.uuid4().hex}
    return provider.sign(provider.claims(time.time(), **(fine | changes)))


async def test_a_token_is_its_tenants(
    gate: GateProcess, rsa: OpenIDProvider, ec: OpenIDProvider, company: tuple[str, str]
) -> None:
    """RS256 and ES256: the stream is on the ledger of the tenant that is named, with token and end user."""
    tenant, name = company
    assert chat(gate, signed(rsa, name, jti="by-rsa", sub="ann")).status_code == 200
    assert chat(gate, signed(ec, name, jti="by-ec", sub="bob", tenant=tenant)).status_code == 200
    report = signed(rsa, name, scope="llm:report")
    events = call(gate, "GET", "/v1/usage/events", report)["data"]
    seen = [(e["tenant_id"], e["key_id"], e["token_id"], e["end_user"], e["output_tokens"]) for e in events]
    assert seen == [(tenant, None, "by-rsa", "ann", 3), (tenant, None, "by-ec", "bob", 3)]


async def test_it_is_capped_as_its_tenant_is(gate: GateProcess, rsa: OpenIDProvider) -> None:
    """Tokens of one tenant share its streams, also with its keys."""
    name = f"small-{uuid.uuid4().hex}"
    tenant = new_tenant(gate, external_id=name, max_streams=1)
    stream = await people.held(gate, signed(rsa, name))
    for credential in (signed(rsa, name), new_key(gate, tenant)["key"]):
        assert error_of(chat(gate, credential)) == (429, "rate_limit_exceeded")
    stream.leave()
    await stream.close()


async def test_what_is_not_vouched_for_is_refused(
    gate: GateProcess, rsa: OpenIDProvider, company: tuple[str, str]
) -> None:
    """401 for an unknown tenant and for a provider that nobody trusts; 403 for what is not granted."""
    _, name = company
    stranger = KeyRing("https://stranger.example")
    refused = (401, "invalid_api_key")
    assert error_of(chat(gate, signed(rsa, "nobody"))) == refused
    assert error_of(chat(gate, signed(stranger, name))) == refused
    for scope in ("openid", "chat", "admin", None):  # with a map, its words alone count
        assert error_of(chat(gate, signed(rsa, name, scope=scope))) == (403, "insufficient_scope")
    everything = signed(rsa, name, scope="llm:use llm:report admin tenant:admin")
    for path in ("/v1/keys", "/admin/tenants"):
        assert error_of(gate.http("GET", path, everything)) == (403, "insufficient_scope")
    assert error_of(gate.http("POST", "/auth/tokens", everything)) == (400, "invalid_request")


async def test_nobody_is_refused_while_a_provider_changes_its_key(
    gate: GateProcess, rsa: OpenIDProvider, company: tuple[str, str]
) -> None:
    """The next key was published ahead: on both workers every token is taken, before and after."""
    _, name = company
    before, over = rsa.signs, threading.Event()
    answers: list[dict[str, list[int]]] = [{}, {}]

    def flow(line: people.Line, seen: dict[str, list[int]]) -> None:
        while not over.is_set():
            kid = rsa.signs
            token = rsa.sign(rsa.claims(time.time(), tenant=name, scope="llm:use", jti=uuid.uuid4().hex), kid)
            seen.setdefault(kid, []).append(line.get(MODELS, token))

    def enough() -> bool:
        return all(len(seen.get(rsa.signs, [])) >= 20 for seen in answers)

    with people.lines(gate) as both:
        flows = [asyncio.to_thread(flow, line, seen) for line, seen in zip(both, answers, strict=True)]
        flowing = asyncio.gather(*flows)
        await people.until(enough)
        assert rsa.rotate() != before
        await people.until(enough)
        over.set()
        await flowing
    for seen in answers:
        assert set(seen) == {before, rsa.signs}
        assert {status for statuses in seen.values() for status in statuses} == {200}


@pytest.mark.parametrize("trouble", ["fail", "hang"])
async def test_a_provider_that_is_down_stops_nobody(
    gate: GateProcess, rsa: OpenIDProvider, company: tuple[str, str], trouble: str
) -> None:
    """The keys that both workers know go on serving, also beside a token of an unknown key."""
    _, name = company
    with people.lines(gate) as both:
        assert [line.get(MODELS, signed(rsa, name)) for line in both] == [200, 200]
        getattr(rsa, trouble)()
        try:
            for line in both:
                unknown = rsa.sign(rsa.claims(time.time(), tenant=name), header={"kid": "unknown"})
                assert line.get(MODELS, signed(rsa, name)) == 200
                assert line.get(MODELS, unknown) == 401
                assert line.get(MODELS, signed(rsa, name)) == 200
        finally:
            rsa.serve()


@pytest.mark.parametrize("by", ["admin", "key", "logout"])
async def test_a_token_is_revoked_by_its_jti(
    gate: GateProcess, ec: OpenIDProvider, company: tuple[str, str], by: str
) -> None:
    """Within a second on both workers, with its streams; other tokens of the same user go on."""
    tenant, name = company
    jti = uuid.uuid4().hex
    token, other = signed(ec, name, jti=jti), signed(ec, name)
    key = new_key(gate, tenant)["key"]
    streams = await people.held_on_both(gate, token)
    how = {
        "admin": ("DELETE", f"/admin/tokens/{jti}?tenant={tenant}", gate.admin),
        "key": ("DELETE", f"/v1/tokens/{jti}", key),
        "logout": ("POST", "/auth/logout", token),
    }
    with people.lines(gate) as both:
        assert [line.get(MODELS, token) for line in both] == [200, 200]
        await asyncio.to_thread(call, gate, *how[by], 204)
        since = time.monotonic()
        for line in both:
            await asyncio.to_thread(line.refused_in_time, MODELS, token, since)
            assert line.get(MODELS, other) == 200
    for last in await asyncio.gather(*map(people.last_event, streams)):
        assert last["code"] == "revoked"
    events = await people.ledger_events(gate, tenant)
    assert {(event["cause"], event["token_id"]) for event in events} == {("revoked", jti)}


async def test_a_tokens_jti_is_revoked_for_its_own_tenant_alone(
    gate: GateProcess, ec: OpenIDProvider, company: tuple[str, str]
) -> None:
    """Another tenant that revokes the same jti takes nothing away; providers may number as they like."""
    _, name = company
    token = signed(ec, name, jti="one")
    other = new_key(gate, new_tenant(gate))["key"]
    call(gate, "DELETE", "/v1/tokens/one", other, 204)
    call(gate, "DELETE", "/admin/tokens/one", gate.admin, 204)
    with people.lines(gate) as both:
        assert [line.get(MODELS, token) for line in both] == [200, 200]


async def test_a_suspended_tenants_tokens_are_refused(
    gate: GateProcess, rsa: OpenIDProvider, company: tuple[str, str]
) -> None:
    """By external id too, on both workers, until it is resumed; a deleted one's for ever."""
    tenant, name = company
    token = signed(rsa, name)
    with people.lines(gate) as both:
        for method, path, after in (
            ("POST", f"/admin/tenants/{tenant}/suspend", 401),
            ("POST", f"/admin/tenants/{tenant}/resume", 200),
            ("DELETE", f"/admin/tenants/{tenant}", 401),
        ):
            await asyncio.to_thread(call, gate, method, path, gate.admin)
            for line in both:
                await people.until(partial(line.answers, MODELS, token, after))


# --- hostile credentials ----------------------------------------------------------------------------


def hostile(rsa: OpenIDProvider, ec: OpenIDProvider, thief: OpenIDProvider, name: str) -> dict[str, str]:
    """Tokens that would do harm; each is good but for its own fault."""
    now = time.time()

    def claims(provider: KeyRing = rsa, **changes: Any) -> dict[str, Any]:
        return provider.claims(now, **({"tenant": name, "scope": "llm:use"} | changes))

    good = rsa.sign(claims())
    head, body, signature = good.split(".")
    own = rsa.keys[rsa.signs]
    spelt = json.dumps(claims()).encode()
    confused = {"alg": "HS256", "kid": rsa.signs, "typ": "JWT"}
    ec_text = compact({"alg": "ES256", "kid": ec.signs, "typ": "JWT"}, claims(ec))
    return {
        "alg none": f"{compact({'alg': 'none', 'kid': rsa.signs}, claims())}.",
        "alg none, signed": f"{compact({'alg': 'none', 'kid': rsa.signs}, claims())}.{signature}",
        "signature stripped": f"{head}.{body}.",
        "claims of another": f"{head}.{compact({}, claims(tenant='evil')).split('.')[1]}.{signature}",
        "HS256 by the public key": hmac_signed(confused, claims(), own.pem().encode()),
        "HS256 by the gate's secret": hmac_signed(confused, claims(), SECRET_KEY.encode()),
        "psychic": f"{ec_text}.{base64url(bytes(64))}",
        "a stranger's key by our name": thief.sign(claims(), header={"kid": rsa.signs}),
        "the other provider's key": ec.sign(claims(), alg="RS256", header={"kid": rsa.signs}),
        "our own name, by a provider": rsa.sign(claims(iss="sluicegate", aud="sluicegate")),
        "kid leaves its folder": rsa.sign(claims(), header={"kid": "../../../../dev/null"}),
        "kid is a line of the log": rsa.sign(claims(), header={"kid": "x\nINFO: all is well"}),
        "jku": thief.sign(claims(), header={"jku": thief.jwks_url}),
        "jwk": thief.sign(claims(), header={"jwk": thief.keys[thief.signs].jwk()}),
        "crit": rsa.sign(claims(), header={"crit": ["exp"]}),
        "for somebody else": rsa.sign(claims(aud="https://other.example")),
        "expired": rsa.sign(claims(iat=int(now) - 900, exp=int(now) - 120)),
        "never expires": rsa.sign(claims(exp=None)),
        "lives for a year": rsa.sign(claims(exp=int(now) + 365 * 86400)),
        "not yet": rsa.sign(claims(nbf=int(now) + 600)),
        "a claim twice": rsa.sign(spelt[:-1] + b', "tenant": "evil"}'),
        "a key that nobody issued": keys.mint().text,
        "a key with a typing error": keys.mint().text[:-1] + "-",
    }


def is_silent(gate: GateProcess, credentials: list[str]) -> None:
    """No twelve characters of any of them are in the log."""
    log = gate.log
    assert "Application startup complete" in log
    for text in credentials:
        windows = {text[start : start + 12] for start in range(len(text) - 11)}
        assert not [window for window in windows if window in log]


async def test_hostile_tokens_get_one_answer_and_leave_no_trace(
    gate: GateProcess,
    rsa: OpenIDProvider,
    ec: OpenIDProvider,
    thief: OpenIDProvider,
    company: tuple[str, str],
) -> None:
    """401 in OpenAI's shape with the same words for all; nobody is asked for them, nothing is logged."""
    _, name = company
    assert chat(gate, signed(rsa, name)).status_code == 200
    tokens = hostile(rsa, ec, thief, name)
    asked = rsa.fetches + ec.fetches
    for fault, token in tokens.items():
        answer = chat(gate, token)
        assert error_of(answer) == (401, "invalid_api_key"), fault
        assert answer.json()["error"]["message"] == "Incorrect API key or token provided.", fault
        assert answer.headers["www-authenticate"] == "Bearer"
    assert thief.requests == []
    assert rsa.fetches + ec.fetches - asked <= 2 * 2  # once for each worker and provider
    is_silent(gate, list(tokens.values()))


async def test_a_credential_comes_once_and_in_a_header(
    gate: GateProcess, rsa: OpenIDProvider, company: tuple[str, str]
) -> None:
    """Two at a time, or one in the address, are refused, be they as good as they may; and not logged."""
    tenant, name = company
    key, token = new_key(gate, tenant)["key"], signed(rsa, name)
    bought, _ = buy(gate, key)
    bearers = [("authorization", f"Bearer {credential}") for credential in (key, token, bought)]
    for headers, query in (
        ([*bearers[:1], *bearers[:1]], ""),
        (bearers[:2], ""),
        ([bearers[1], ("x-api-key", key)], ""),
        ([("x-api-key", key), ("x-api-key", key)], ""),
        ([], f"?api_key={key}&key={key}"),
        ([], f"?access_token={token}&token={bought}"),
        ([("cookie", f"authorization={token}; api_key={key}")], ""),
        ([("authorization", f"Basic {token}")], ""),
        ([("authorization", key)], ""),
        ([("authorization", f"Bearer {key} {key}")], ""),
    ):
        answer = httpx2.get(f"{gate.url}{MODELS}{query}", headers=headers, trust_env=False, timeout=30)
        assert error_of(answer) == (401, "invalid_api_key")
        assert not any(text in answer.text for text in (key, token, bought))
    for headers in ([bearers[0]], [bearers[1]], [bearers[2]], [("x-api-key", key)]):
        answer = httpx2.get(f"{gate.url}{MODELS}", headers=headers, trust_env=False, timeout=30)
        assert answer.status_code == 200
    is_silent(gate, [key, token, bought])
