"""The page at `/`, in a real Chromium; and its client, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.gates import GateProcess

ARTEFACTS = ROOT / "tests" / "artefacts"
CLIENT = ROOT / "clients/js"

# Chromium must not try to reach anybody but the page's own server.
OFFLINE = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """The browser; its absence is a failure."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "Chromium is needed: apt-get install chromium"
    return found


@pytest.fixture
async def page(demo: GateProcess) -> AsyncIterator[Page]:
    """The page, opened; fails if the browser complains of anything, the content security policy included."""
    complaints: list[str] = []
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=chromium(), args=OFFLINE)
        opened = await browser.new_page()
        opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        await opened.goto(demo.url)
        yield opened
        await browser.close()
    assert [c for c in complaints if "status of 401" not in c] == []


async def ask(page: Page, key: str, prompt: str, model: str = "") -> None:
    """Fill in the form and send it."""
    await page.fill("#key", key)
    await page.press("#key", "Tab")
    await expect(page.locator("#model option")).to_have_count(5)
    if model:
        await page.evaluate(
            "m => document.querySelector('#model').add(new Option(m, m, true, true))",
            model,
        )
    await page.fill("#prompt", prompt)
    await page.click("#send")


async def test_a_stream_arrives_in_the_browser(page: Page, demo: GateProcess) -> None:
    """With the demo key and the default model the words arrive, and the usage shows what they cost."""
    await ask(page, demo.tenant()[1], "Why is the sky blue?")
    await expect(page.locator("#state")).to_have_text("Done", timeout=20_000)
    words = (await page.inner_text("#output")).split()
    assert len(words) == 48
    await expect(page.locator("#usage")).to_contain_text("48")
    ARTEFACTS.mkdir(exist_ok=True)
    await page.screenshot(path=ARTEFACTS / "page.png", full_page=True)
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.emulate_media(color_scheme="dark")
    await page.screenshot(path=ARTEFACTS / "page-phone-dark.png", full_page=True)


async def test_tokens_show_while_they_stream_and_stop_stops(page: Page, demo: GateProcess) -> None:
    """The first words are on the page while the provider is silent; Stop ends it: left."""
    _, key = demo.tenant()
    await ask(page, key, "hi", "scripted?tokens=20&pace_ms=0&silence_at=10&silence_ms=60000")
    await expect(page.locator("#output")).to_contain_text("through")
    await expect(page.locator("#state")).to_have_text("Streaming…")
    await page.click("#stop")
    await expect(page.locator("#state")).to_have_text("Stopped")
    await expect(page.locator("#usage")).to_contain_text("10")
    [event] = demo.http("GET", "/v1/usage/events", key).json()["data"]
    assert (event["ended"], event["output_tokens"]) == ("left", 10)


async def test_a_wrong_key_is_explained(page: Page) -> None:
    """A key that does not hold gets words that help, and no answer."""
    await page.fill("#key", "sg_wrong")
    await page.fill("#prompt", "hi")
    await page.click("#send")
    await expect(page.locator("#error")).to_contain_text("key")
    assert await page.inner_text("#output") == ""


async def test_an_error_in_the_middle_is_shown_with_what_came_before(page: Page, demo: GateProcess) -> None:
    """Ten words, then the provider breaks off: both are on the page."""
    await ask(page, demo.facts["key"], "hi", "scripted?tokens=20&pace_ms=0&eof_at=10")
    await expect(page.locator("#state")).to_have_text("Failed")
    await expect(page.locator("#error")).to_contain_text("in the middle")
    assert len((await page.inner_text("#output")).split()) == 10


def test_the_client_holds_its_own_suite() -> None:
    """client.js passes its tests in Node: torn chunks, CRLF, comments, error events, abort."""
    node = shutil.which("node")
    assert node, "Node is needed: apt-get install nodejs"
    suite = Path(__file__).parent / "client.test.mjs"
    done = subprocess.run([node, "--test", suite], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_package_is_what_the_gateway_serves(demo: GateProcess) -> None:
    """`npm pack` takes the client, its types and the example; pages get the very same file."""
    packed = subprocess.run(
        ["npm", "pack", "--dry-run", "--json"], cwd=CLIENT, capture_output=True, text=True, check=True
    )
    names = {file["path"] for file in json.loads(packed.stdout)[0]["files"]}
    assert names == {"client.js", "client.d.ts", "package.json", "README.md", "examples/useStream.jsx"}
    assert demo.http("GET", "/static/client.js").content == (CLIENT / "client.js").read_bytes()


def test_the_types_say_what_can_be_said() -> None:
    """A strict TypeScript program compiles; what it gets wrong on purpose is found."""
    sdks = ROOT / "tests/sdks"
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2023,dom"]
    done = subprocess.run(
        [sdks / "node_modules/.bin/tsc", *options, "client_types.ts"],
        cwd=sdks,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_page_keeps_a_strict_policy(demo: GateProcess) -> None:
    """Nothing from elsewhere and nothing inline may run; only listed files are served."""
    policy = demo.http("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("index.html", "..%2f..%2fsettings.py", "client.test.mjs", ""):
        assert demo.http("GET", f"/static/{name}").status_code == 404
