"""What a key is for: when, from where, for which models; whose pages may call; and what a bad wish is told.

One worker with CORS and behind a proxy on 127.0.0.1, as operators run it.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import ROOT
from tests.support.wire import WireClient, data_lines
from tests.wire import people
from tests.wire.people import call, chat, error_of, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import ScriptedProcess

PAGE, OTHER_PAGE = "https://app.example.com", "https://evil.example.com"
MODEL, FALLBACK = "gpt-4o?tokens=1", "gpt-4o-mini?tokens=1"
EXPOSED = {
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-sluicegate-mode",
    "x-sluicegate-stream",
    "x-sluicegate-upstream",
    "x-sluicegate-replay",
    "ratelimit",
    "ratelimit-policy",
    *(
        f"x-ratelimit-{part}-{kind}"
        for part in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    ),
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedProcess) -> Iterator[GateProcess]:
    """One worker, in SQLite and in memory."""
    with gate_process(
        tmp_path_factory.mktemp("gate"),
        OPENAI_BASE_URL=f"{scripted.url}/v1",
        SECRET_KEY=SECRET_KEY,
        ADMIN_PASSWORD="correct horse battery staple",
        CORS_ORIGINS=f"{PAGE}, https://other-app.example.com:8443",
        TRUSTED_PROXIES="127.0.0.1",
        DEFAULT_MODEL=FALLBACK,
        MAX_BODY_BYTES="4096",
        DRAIN_SECONDS="1",
    ) as process:
        yield process


@pytest.fixture
def tenant(gate: GateProcess) -> str:
    """A new tenant."""
    return new_tenant(gate)


# --- what a key is for ------------------------------------------------------------------------------


def test_an_expired_key_is_refused(gate: GateProcess, tenant: str) -> None:
    """As one that never was; one that is about to expire is taken."""
    now = datetime.now(UTC)
    old, young = (
        new_key(gate, tenant, expires_at=(now + timedelta(hours=hours)).isoformat())["key"]
        for hours in (-1, 1)
    )
    assert error_of(chat(gate, old)) == (401, "invalid_api_key")
    assert chat(gate, young).status_code == 200


@pytest.mark.parametrize(
    ("allowed", "fine", "wrong"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.8"),
        ("203.0.113.0/24", "203.0.113.200", "203.0.114.1"),
        ("2001:db8::/32", "2001:db8::1", "2001:db9::1"),
        ("203.0.113.7", "::ffff:203.0.113.7", "::ffff:203.0.113.8"),
    ],
)
def test_a_key_is_taken_from_its_addresses_alone(
    gate: GateProcess, tenant: str, allowed: str, fine: str, wrong: str
) -> None:
    """The address is the proxy's word; a 403 says what is wrong, and only to who holds the key."""
    key = new_key(gate, tenant, allowed_addresses=[allowed])["key"]
    token = gate.http("POST", "/auth/tokens", key, headers={"x-forwarded-for": fine}).json()["access_token"]
    assert chat(gate, key, headers={"x-forwarded-for": fine}).status_code == 200
    for elsewhere in ({"x-forwarded-for": wrong}, {"x-forwarded-for": f"{fine}, {wrong}"}, {}):
        assert error_of(chat(gate, key, headers=elsewhere)) == (403, "address_not_allowed")
    not_theirs = key[:-1] + ("a" if key[-1] != "a" else "b")
    assert error_of(chat(gate, not_theirs)) == (401, "invalid_api_key")
    assert chat(gate, token).status_code == 200  # it was bought to be given away


async def test_a_key_has_a_cap_of_its_own(gate: GateProcess, tenant: str) -> None:
    """Which is named in the 429, beside the tenant's, which still counts them all."""
    small, other = new_key(gate, tenant, max_streams=1)["key"], new_key(gate, tenant)["key"]
    stream = await people.held(gate, small)
    refused = chat(gate, small)
    assert error_of(refused) == (429, "rate_limit_exceeded")
    assert "1 streams open with this key" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert chat(gate, other).status_code == 200
    call(gate, "PATCH", f"/admin/tenants/{tenant}", gate.admin, json={"max_streams": 1})
    assert "with this key" not in chat(gate, other).json()["error"]["message"]
    stream.leave()
    await stream.close()


def test_a_key_uses_its_models_alone(gate: GateProcess, tenant: str) -> None:
    """Also where the request names none: the default model is no way around."""
    key = new_key(gate, tenant, models=["scripted*", "gpt-4o", MODEL])["key"]
    statuses = {model: chat(gate, key, model).status_code for model in (people.SHORT, MODEL, FALLBACK)}
    assert statuses == {people.SHORT: 200, MODEL: 200, FALLBACK: 403}
    refused = gate.http("POST", "/chat/stream", key, json={"prompt": "hi"})
    assert error_of(refused) == (403, "model_not_allowed")
    listed = call(gate, "GET", "/v1/models", key)["data"]
    assert sorted(model["id"] for model in listed) == ["gpt-4o", "scripted"]


def test_a_tenants_default_model_stands_before_the_gates(gate: GateProcess, tenant: str) -> None:
    """And behind the one that a request names."""
    key = new_key(gate, tenant)["key"]
    for default in (MODEL, None):
        call(gate, "PATCH", f"/admin/tenants/{tenant}", gate.admin, json={"default_model": default})
        assert gate.http("POST", "/chat/stream", key, json={"prompt": "hi"}).status_code == 200
    assert chat(gate, key).status_code == 200
    events = call(gate, "GET", "/v1/usage/events", key)["data"]
    assert [event["model"] for event in events] == [MODEL, FALLBACK, people.SHORT]


def test_a_key_comes_in_either_header(gate: GateProcess, tenant: str) -> None:
    """`x-api-key` is as good as a bearer; the scheme's case does not count."""
    key = new_key(gate, tenant)["key"]
    for headers in ({"x-api-key": key}, {"authorization": f"bearer {key}"}):
        assert chat(gate, "", headers=headers).status_code == 200


def test_when_a_key_was_last_used_outlives_the_process(tmp_path: Path) -> None:
    """It is written at SIGTERM, for those that were used, whatever else was going on."""
    with gate_process(tmp_path, SECRET_KEY=SECRET_KEY, ADMIN_PASSWORD="correct horse battery staple") as gate:
        tenant = new_tenant(gate)
        used, unused = new_key(gate, tenant), new_key(gate, tenant)
        before = datetime.now(UTC)
        assert chat(gate, used["key"]).status_code == 200
        gate.stop()
        keys = {key["id"]: key["last_used_at"] for key in gate.cli("key", "list", tenant)}
    assert keys[unused["id"]] is None
    assert before <= datetime.fromisoformat(keys[used["id"]]) <= datetime.now(UTC)


# --- whose pages may call ---------------------------------------------------------------------------


def asked_from(
    gate: GateProcess, origin: str, method: str, path: str, token: str = "", **options: Any
) -> Any:
    """A request as a page of that origin makes it."""
    return gate.http(method, path, token, headers={"origin": origin, **options.pop("headers", {})}, **options)


def test_a_page_may_ask_before_it_calls(gate: GateProcess) -> None:
    """A preflight of an allowed origin is granted with the headers that a call needs; another's is not."""
    wish = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for origin in (PAGE, "https://other-app.example.com:8443"):
        granted = asked_from(gate, origin, "OPTIONS", "/chat/stream", headers=wish)
        assert granted.status_code == 200
        assert granted.headers["access-control-allow-origin"] == origin
        assert "POST" in granted.headers["access-control-allow-methods"]
        assert "authorization" in granted.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in granted.headers
    for origin in (OTHER_PAGE, "null", PAGE.replace("https", "http"), f"{PAGE}.evil.example", f"{PAGE}:444"):
        refused = asked_from(gate, origin, "OPTIONS", "/chat/stream", headers=wish)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


async def test_a_page_reads_a_stream(gate: GateProcess, tenant: str) -> None:
    """The stream itself carries the headers, for an allowed origin alone; and comes as it is made."""
    key = new_key(gate, tenant)["key"]
    for origin, allowed in ((PAGE, PAGE), (OTHER_PAGE, None)):
        client = await WireClient.post(
            gate.url, "/chat/stream", people.plain(people.HELD), key=key, headers={"origin": origin}
        )
        assert len(await client.events(10)) == 10
        assert client.headers.get("access-control-allow-origin") == allowed
        exposed = client.headers.get("access-control-expose-headers", "")
        if allowed:
            assert {name.strip() for name in exposed.split(",")} == EXPOSED
            assert client.headers["vary"] == "Origin"
        client.leave()
        await client.close()
    answer = asked_from(gate, PAGE, "POST", "/chat/stream", key, json=people.plain())
    assert data_lines(answer.content)[-1] == b"[DONE]"


def test_a_page_can_read_what_went_wrong(gate: GateProcess, tenant: str) -> None:
    """Errors carry the headers too: without them a browser hides the answer and its Retry-After."""
    key = new_key(gate, tenant)["key"]
    seen = [
        asked_from(gate, PAGE, method, path, token, **options)
        for method, path, token, options in (
            ("GET", "/v1/usage", "", {}),
            ("GET", "/v1/keys", key, {}),
            ("GET", "/v1/nothing", key, {}),
            ("PUT", "/v1/usage", key, {}),
            ("POST", "/chat/stream", key, {"content": b"no JSON"}),
            ("POST", "/chat/stream", key, {"json": people.plain("no-such-model")}),
        )
    ]
    assert [answer.status_code for answer in seen] == [401, 403, 404, 405, 400, 404]
    assert {answer.headers.get("access-control-allow-origin") for answer in seen} == {PAGE}
    hidden = asked_from(gate, OTHER_PAGE, "GET", "/v1/usage")
    assert "access-control-allow-origin" not in hidden.headers


def test_a_page_can_read_that_its_body_is_too_large(gate: GateProcess, tenant: str) -> None:
    """The refusal of the outermost layer carries the headers, as all others."""
    key = new_key(gate, tenant)["key"]
    answer = asked_from(gate, PAGE, "POST", "/chat/stream", key, content=b"x" * 5000)
    assert answer.status_code == 413
    assert answer.headers.get("access-control-allow-origin") == PAGE


# --- what a bad wish is told ------------------------------------------------------------------------


def test_a_patch_changes_what_it_names(gate: GateProcess) -> None:
    """What is left out stays; null takes away what may be away; the audit log has what was changed."""
    name = uuid.uuid4().hex
    tenant = new_tenant(gate, external_id=name, default_model="gpt-4o", metadata={"plan": "gold"})
    path = f"/admin/tenants/{tenant}"
    before = call(gate, "GET", path, gate.admin)
    assert call(gate, "PATCH", path, gate.admin, json={}) == before
    after = call(gate, "PATCH", path, gate.admin, json={"name": "new", "default_model": None})
    assert after == before | {"name": "new", "default_model": None}
    [entry, *_] = call(gate, "GET", f"/admin/audit?tenant={tenant}", gate.admin)["data"]
    assert (entry["action"], entry["details"]) == ("tenant.change", {"name": "new", "default_model": None})
    key = new_key(gate, tenant, models=["gpt-4o"], max_streams=3, allowed_addresses=["10.0.0.1"])
    path, shown = f"/admin/keys/{key['id']}", {name: value for name, value in key.items() if name != "key"}
    changed = call(gate, "PATCH", path, gate.admin, json={"models": None, "allowed_addresses": []})
    assert changed == shown | {"models": None, "allowed_addresses": []}
    assert call(gate, "PATCH", path, gate.admin, json={"max_streams": 4}) == changed | {"max_streams": 4}


def test_limits_are_set_merged_and_taken_away(gate: GateProcess) -> None:
    """By admins, and by a tenant's own admin on its keys; what is shown are the names that are set."""
    each = {"max_streams": 2, "tokens_per_day": 5000}
    tenant = new_tenant(gate, limits={"tokens_per_minute": 9, "shadow": []}, end_user_limits=each, weight=5)
    path = f"/admin/tenants/{tenant}"
    shown = call(gate, "GET", path, gate.admin)
    assert (shown["limits"], shown["end_user_limits"]) == ({"tokens_per_minute": 9}, each)
    assert (shown["max_waiters"], shown["max_wait_seconds"], shown["weight"]) == (0, 30, 5)
    patch = {"limits": {"tokens_per_minute": None, "nano_dollars_per_day": 2**52, "shadow": ["max_streams"]}}
    changed = call(gate, "PATCH", path, gate.admin, json=patch | {"max_waiters": 3})
    limits = {"nano_dollars_per_day": 2**52, "shadow": ["max_streams"]}
    assert changed == shown | {"limits": limits, "max_waiters": 3}
    assert call(gate, "GET", path, gate.admin) == changed
    [entry, *_] = call(gate, "GET", f"/admin/audit?tenant={tenant}", gate.admin)["data"]
    assert entry["details"] == patch | {"max_waiters": 3}
    boss = new_key(gate, tenant, scopes=["tenant:admin"])["key"]
    own = call(gate, "POST", "/v1/keys", boss, 201, json={"limits": {"requests_per_minute": 60}})
    path = f"/v1/keys/{own['id']}"
    assert call(gate, "GET", path, boss)["limits"] == own["limits"] == {"requests_per_minute": 60}
    changed = call(gate, "PATCH", path, boss, json={"limits": {"tokens_per_day": 7}})
    assert changed["limits"] == {"requests_per_minute": 60, "tokens_per_day": 7}


BAD_TENANTS: list[tuple[str, Any]] = [
    ("name", " "),
    ("name", None),
    ("name", "a\x1b[2J"),
    ("max_streams", 0),
    ("max_streams", None),
    ("time_zone", "Mars/Olympus"),
    ("time_zone", None),
    ("external_id", ""),
    ("metadata", {"a": 1}),
    ("metadata", None),
    ("limits", None),
    ("limits", {"tokens_per_day": 0}),
    ("limits", {"max_streams": 5}),
    ("end_user_limits", None),
    ("end_user_limits", {"shadow": ["tokens_in_all"]}),
    ("max_waiters", 10_001),
    ("max_wait_seconds", None),
    ("weight", True),
    ("colour", "red"),
]
BAD_KEYS: list[tuple[str, Any]] = [
    ("name", ""),
    ("scopes", []),
    ("scopes", ["root"]),
    ("scopes", None),
    ("models", []),
    ("models", ["*a"]),
    ("max_streams", "many"),
    ("allowed_addresses", ["10.0.0.0/33"]),
    ("allowed_addresses", ["example.com"]),
    ("allowed_addresses", None),
    ("expires_at", "2030-01-01T00:00:00"),
    ("expires_at", "tomorrow"),
    ("limits", None),
    ("limits", {"requests_per_minute": "60"}),
    ("end_user_limits", {}),
    ("key", "sg_mine"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [*(("tenant", *bad) for bad in BAD_TENANTS), *(("key", *bad) for bad in BAD_KEYS)],
)
def test_a_bad_wish_is_told_which_field_it_is(
    gate: GateProcess, tenant: str, kind: str, name: str, value: Any
) -> None:
    """A 400 names the field, and nothing is changed; what it holds is not repeated."""
    path = f"/admin/tenants/{tenant}"
    if kind == "key":
        path = f"/admin/keys/{new_key(gate, tenant)['id']}"
    before = call(gate, "GET", path, gate.admin)
    refused = gate.http("PATCH", path, gate.admin, json={name: value})
    assert error_of(refused) == (400, "invalid_request")
    error = refused.json()["error"]
    assert error["param"].partition(".")[0] == name
    assert not isinstance(value, str) or len(value) < 3 or value not in error["message"]
    assert call(gate, "GET", path, gate.admin) == before


def test_an_external_id_is_one_tenants(gate: GateProcess, tenant: str) -> None:
    """409 for whoever takes it second, by creating or by changing; a deleted tenant's is free again."""
    name = uuid.uuid4().hex
    first = new_tenant(gate, external_id=name)
    taken = (
        ("POST", "/admin/tenants", {"name": "second", "external_id": name}),
        ("PATCH", f"/admin/tenants/{tenant}", {"external_id": name}),
    )
    for method, path, body in taken:
        assert error_of(gate.http(method, path, gate.admin, json=body)) == (409, "conflict")
    call(gate, "DELETE", f"/admin/tenants/{first}", gate.admin)
    (method, path, body) = taken[1]
    assert call(gate, method, path, gate.admin, json=body)["external_id"] == name


# --- what is not served -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", ["quite-random-but-31-characters-", "your-secret-key-goes-here-1234567890"]
)
def test_a_secret_that_can_be_guessed_is_not_served_with(tmp_path: Path, secret: str) -> None:
    """`serve` ends with status 2 and a line that names the setting, and not what it holds."""
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "serve"],
        env={"PATH": "", "PYTHONPATH": str(ROOT), "DATA_DIR": str(tmp_path), "SECRET_KEY": secret},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "SECRET_KEY" in done.stderr
    assert secret not in done.stderr
    assert list(tmp_path.iterdir()) == []
