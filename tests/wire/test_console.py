"""The console at /admin/ui, in a real Chromium, as an admin goes through it; and its session's defences."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page, expect

from tests.support.gates import GateProcess, gate_process
from tests.support.servers import ROOT
from tests.wire import people
from tests.wire.browsing import opened, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

VENDOR = ROOT / "api/console/vendor"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    """Another one: ten sign-ins a minute are all that an address gets."""
    with gate_process(tmp_path_factory.mktemp("sessions")) as gate:
        yield gate


@pytest.fixture
async def page(demo: GateProcess) -> AsyncIterator[Page]:
    """The console, opened; fails if the browser complains of anything, its security policy included."""
    async with opened(f"{demo.url}/admin/ui") as shown_page:
        yield shown_page


async def sign_in(page: Page, demo: GateProcess) -> None:
    await page.get_by_label("E-mail address").fill(demo.facts["admin_email"])
    await page.get_by_label("Password").fill(demo.facts["admin_password"])
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()


async def test_from_sign_in_to_a_revoked_key(page: Page, demo: GateProcess) -> None:
    """First sign-in, first tenant, first key, a stream, its usage, the key's revocation, and the refusal."""
    await shown(page, "console-sign-in")
    await sign_in(page, demo)
    await page.get_by_role("link", name="Tenants").click()
    await page.get_by_label("Name").fill("Acme & <b>Sons</b>")
    await page.get_by_label("Streams at once").fill("3")
    await page.get_by_role("button", name="Create tenant").click()
    await expect(page.get_by_role("heading", name="Acme & <b>Sons</b>")).to_be_visible()
    await expect(page.get_by_text("No keys yet.")).to_be_visible()

    await page.get_by_text("Change limits").click()
    await page.get_by_label("tokens per day").fill("1000")
    await page.get_by_role("button", name="Save limits").click()
    await expect(page.get_by_role("region", name="What is used of each limit")).to_contain_text("1,000")

    await page.get_by_label("Name of a new key").fill("web")
    await page.get_by_role("button", name="Issue key").click()
    key = await page.locator("#issued").input_value()
    await shown(page, "console-tenant")
    await page.get_by_role("button", name="Done").click()
    await expect(page.locator("#issued")).to_have_count(0)
    assert key not in await page.content()

    streams = await people.held(demo, key)
    await page.get_by_role("link", name="Overview").click()
    running = page.get_by_role("region", name="Streams that run")
    await expect(running).to_contain_text("Acme", timeout=15_000)
    await expect(page.locator(".tiles")).to_contain_text("Open streams1")
    await shown(page, "console-overview")
    await page.get_by_role("button", name="End").click()
    assert (await people.last_event(streams))["code"] == "ended_by_admin"
    await expect(page.get_by_text("No stream runs.")).to_be_visible(timeout=15_000)

    await page.get_by_role("link", name="Usage").click()
    await page.get_by_label("By", exact=True).select_option("tenant")
    await expect(page.get_by_role("region", name="Sums by group")).to_contain_text("Acme", timeout=15_000)
    await shown(page, "console-usage")
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download CSV").click()
    rows = (await (await downloading.value).path()).read_text().splitlines()
    assert rows[0].startswith("starts_at,ends_at,tenant,")

    await page.get_by_role("link", name="Tenants").click()
    await page.get_by_role("link", name="Acme").click()
    await page.get_by_role("button", name="Revoke").click()
    await expect(page.get_by_role("region", name="Each key")).to_contain_text("revoked")
    assert people.chat(demo, key).status_code == 401
    await page.get_by_role("link", name="Audit log").click()
    await expect(page.get_by_role("region", name="Newest changes")).to_contain_text("key.revoke")
    await shown(page, "console-audit")
    await page.get_by_role("link", name="Upstreams").click()
    await expect(page.get_by_role("region", name="Each upstream")).to_contain_text("scripted")
    await shown(page, "console-upstreams")


async def test_signing_out_ends_the_session_at_the_gate(page: Page, demo: GateProcess) -> None:
    """No script can read the cookie; a wrong password is explained; signed out, the old token is refused."""
    await page.get_by_label("E-mail address").fill(demo.facts["admin_email"])
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("Wrong e-mail address or password.")
    await sign_in(page, demo)
    assert await page.evaluate("document.cookie") == ""
    [cookie] = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    await page.reload()
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in as an admin")).to_be_visible()
    assert demo.http("GET", "/admin/tenants", cookie["value"]).status_code == 401


async def test_a_view_can_be_used_by_keyboard_alone(page: Page, demo: GateProcess) -> None:
    """The first stop leads to the content, and a view that was chosen has the focus at its title."""
    await sign_in(page, demo)
    await page.reload()
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.get_by_role("link", name="Usage").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Usage")).to_be_focused()


def session(other: GateProcess) -> str:
    """The cookie of a new session."""
    login = {"email": other.facts["admin_email"], "password": other.facts["admin_password"]}
    answer = other.http("POST", "/auth/session", json=login)
    assert (answer.status_code, answer.content) == (204, b"")
    return str(answer.headers["set-cookie"].partition(";")[0])


def test_the_cookie_opens_nothing_for_another_sites_page(other: GateProcess) -> None:
    """Without the header that our own pages alone can send, or from elsewhere as the browser says: 401."""
    cookie = session(other)
    own = {"cookie": cookie, "x-sluicegate-console": "admin"}
    assert other.http("GET", "/admin/tenants", headers=own).status_code == 200
    assert (
        other.http("GET", "/admin/tenants", headers=own | {"sec-fetch-site": "same-origin"}).status_code
        == 200
    )
    for foreign in (
        {"cookie": cookie},
        own | {"sec-fetch-site": "cross-site"},
        own | {"sec-fetch-site": "same-site"},
        own | {"cookie": "sluicegate_admin=x"},
    ):
        for method, path in (("GET", "/admin/tenants"), ("POST", "/admin/tenants"), ("POST", "/auth/logout")):
            assert other.http(method, path, headers=foreign, json={"name": "x"}).status_code == 401
    assert other.http("POST", "/auth/logout", headers=own).status_code == 204
    assert other.http("GET", "/admin/tenants", headers=own).status_code == 401


def test_the_cookie_is_for_https_alone_where_that_is_spoken(tmp_path: Any) -> None:
    """Behind a proxy that ends TLS and is trusted, the cookie says `Secure`."""
    with gate_process(tmp_path / "tls", TRUSTED_PROXIES="127.0.0.1") as gate:
        login = {"email": gate.facts["admin_email"], "password": gate.facts["admin_password"]}
        answer = gate.http("POST", "/auth/session", json=login, headers={"x-forwarded-proto": "https"})
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "secure" not in gate.http("POST", "/auth/session", json=login).headers["set-cookie"].lower()


def test_a_wrong_sign_in_gets_no_session(other: GateProcess) -> None:
    """No cookie, and the words of `/auth/login`."""
    answer = other.http("POST", "/auth/session", json={"email": "x@example.com", "password": "wrong"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_live_numbers_are_for_admins_and_end_with_the_session(other: GateProcess) -> None:
    """An object a second; a tenant's key gets none."""
    import httpx2

    _, key = other.tenant()
    assert other.http("GET", "/admin/live", key).status_code == 403
    own = {"cookie": session(other), "x-sluicegate-console": "admin"}
    with httpx2.stream("GET", f"{other.url}/admin/live", headers=own, timeout=20, trust_env=False) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        told = json.loads(next(lines).removeprefix("data:"))
        assert set(told) >= {"open_streams", "tokens_per_second", "refusals_per_second", "upstreams"}
        assert other.http("POST", "/auth/logout", headers=own).status_code == 204
        assert len(list(lines)) < 5


def test_what_is_vendored_is_what_the_lock_names(demo: GateProcess) -> None:
    """Each file is as `scripts/vendor` left it, its version and licence beside it; the browser gets it."""
    sums = dict(reversed(line.split()) for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {path.name for path in VENDOR.iterdir() if path.suffix in {".js", ".css"}}
    for name, digest in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
        assert demo.http("GET", f"/static/vendor/{name}").status_code == 200
    licences = (VENDOR / "LICENSES.txt").read_text()
    for name, version in json.loads((VENDOR / "package.json").read_text())["dependencies"].items():
        assert f"=== {name} {version} ===" in licences
