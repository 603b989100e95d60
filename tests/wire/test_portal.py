"""The customers' page at /portal, in a real Chromium, as a tenant's admin sees it; its samples, run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page, expect

from tests.support.servers import ROOT
from tests.wire import people
from tests.wire.browsing import opened, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.gates import GateProcess

SDKS = ROOT / "tests/sdks"


@pytest.fixture
async def page(demo: GateProcess) -> AsyncIterator[Page]:
    """The page, opened."""
    async with opened(f"{demo.url}/portal") as one:
        yield one


def admins_key(demo: GateProcess) -> str:
    """A key of a new tenant's own admin."""
    tenant = people.new_tenant(demo, limits={"tokens_per_day": 5000})
    return str(people.new_key(demo, tenant, scopes=people.EVERY_TENANT_SCOPE)["key"])


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()


async def test_from_a_key_to_the_usage_of_another(page: Page, demo: GateProcess) -> None:
    """Sign-in with a key, a key of one's own, the playground, the stream's usage; then the key is revoked."""
    await shown(page, "portal-sign-in")
    key = admins_key(demo)
    await sign_in(page, key)
    await expect(page.get_by_text("Nothing was used yet.")).to_be_visible()
    assert key not in await page.content()

    await page.get_by_role("link", name="Playground").first.click()
    await page.get_by_label("Prompt").fill("Why is the sky blue?")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#output")).to_have_attribute("aria-busy", "false", timeout=20_000)
    assert len((await page.locator("#output").inner_text()).split()) == 48
    await shown(page, "portal-playground")

    await page.get_by_role("link", name="Keys").click()
    await page.get_by_label("Name of a new key").fill("web")
    await page.get_by_role("button", name="Issue key").click()
    issued = await page.locator("#issued").input_value()
    await page.get_by_role("button", name="Done").click()
    streams = await people.held(demo, issued)
    await page.get_by_role("link", name="Overview").click()
    await expect(page.get_by_role("region", name="Streams that run")).to_contain_text("live", timeout=15_000)
    await shown(page, "portal-overview")
    await page.get_by_role("button", name="Stop").click()
    assert (await people.last_event(streams))["code"] == "ended_by_admin"
    await expect(page.locator(".tiles")).to_contain_text("Requests2", timeout=15_000)

    await page.get_by_role("link", name="Usage").click()
    await page.get_by_label("By", exact=True).select_option("key")
    await expect(page.get_by_role("region", name="Sums by group")).to_contain_text("48", timeout=15_000)
    await shown(page, "portal-usage")
    await page.get_by_role("link", name="Keys").click()
    row = page.get_by_role("row").filter(has_text="web")
    await row.get_by_role("button", name="Revoke").click()
    await expect(row).to_contain_text("revoked")
    assert (await asyncio.to_thread(people.chat, demo, issued)).status_code == 401


async def test_who_is_no_admin_of_a_tenant_is_told_so(page: Page, demo: GateProcess) -> None:
    """A key without the scope, and one that does not hold; an admins' page's session opens nothing here."""
    _, plain = demo.tenant()
    await sign_in(page, plain)
    await expect(page.get_by_role("alert")).to_contain_text("tenant:admin")
    await sign_in(page, "sg_wrong")
    await expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")


def test_a_session_is_no_wider_than_its_key_and_ends_with_it(demo: GateProcess) -> None:
    """Not the admins' routes, not as the other page; revoked with the key; a token buys none."""
    tenant = people.new_tenant(demo)
    key = people.new_key(demo, tenant, scopes=people.EVERY_TENANT_SCOPE)
    answer = demo.http("POST", "/auth/session/key", json={"key": key["key"]})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    own = {"cookie": cookie, "x-sluicegate-console": "portal"}
    assert demo.http("GET", "/v1/keys", headers=own).status_code == 200
    assert demo.http("GET", "/admin/tenants", headers=own).status_code == 403
    assert demo.http("GET", "/v1/keys", headers=own | {"x-sluicegate-console": "admin"}).status_code == 401
    token, _ = people.buy(demo, key["key"])
    assert demo.http("POST", "/auth/session/key", json={"key": token}).status_code == 400
    people.call(demo, "DELETE", f"/admin/keys/{key['id']}", demo.admin)
    assert demo.http("GET", "/v1/keys", headers=own).status_code == 401


async def test_the_samples_work_as_they_are_shown(page: Page, demo: GateProcess, tmp_path: Path) -> None:
    """Each is copied from the page, given the key by environment and a model, and prints the answer."""
    key = admins_key(demo)
    await sign_in(page, key)
    await page.get_by_role("link", name="Integrate").first.click()
    await shown(page, "portal-integrate")
    texts: dict[str, str] = {}
    for name in ("curl", "Python, OpenAI", "Python, Anthropic", "JavaScript"):
        texts[name] = await page.get_by_role("region", name=name, exact=True).locator("pre").inner_text()
    told = (ROOT / "docs/integrate.md").read_text()
    for text in texts.values():
        assert (
            text.replace(demo.url, "http://127.0.0.1:8000") in told
        )  # what is run here is what is written there
    answers = await asyncio.to_thread(lambda: {name: ran(name, text, key) for name, text in texts.items()})
    for name, answer in answers.items():
        assert "water" in answer, (name, answer)


def ran(name: str, text: str, key: str) -> str:
    """What a sample prints."""
    text = text.replace("MODEL", "scripted?tokens=3&pace_ms=0")
    environment = {"PATH": os.environ["PATH"], "SLUICEGATE_KEY": key}
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment}
    if name == "curl":
        done = subprocess.run(["bash", "-c", text], check=False, **options)
    elif name == "JavaScript":
        [node] = SDKS.glob("node_modules/node-linux-*/bin/node")
        done = subprocess.run([node, "--input-type=module", "-e", text], cwd=SDKS, check=False, **options)
    else:
        done = subprocess.run([sys.executable, "-c", text], check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
