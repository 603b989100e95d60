"""Pages in a real Chromium: opened, looked at by axe-core, and kept as pictures."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from playwright.async_api import async_playwright

from tests.support.servers import ROOT
from tests.wire.test_page import ARTEFACTS, OFFLINE, chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Page

AXE = ROOT / "tests/sdks/node_modules/axe-core/axe.min.js"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Page]:
    """A page; fails if the browser complains of anything, its security policy included. Says yes if asked."""
    complaints: list[str] = []
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=chromium(), args=OFFLINE)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(url)
        yield page
        await browser.close()
    assert [c for c in complaints if "status of 401" not in c and "status of 403" not in c] == []


async def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps somebody out: the rule, and where."""
    await page.evaluate(AXE.read_text())
    found: Any = await page.evaluate("axe.run().then(({violations}) => violations)")
    return [
        f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in {"serious", "critical"}
    ]


async def shown(page: Page, name: str) -> None:
    """Screenshots by day and night, on a desk and on a phone; nothing serious for axe in either light."""
    ARTEFACTS.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert await serious(page) == [], (name, scheme)
        for place, width in (("desktop", 1280), ("phone", 390)):
            await page.set_viewport_size({"width": width, "height": 900})
            wider = await page.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert not wider, f"{name} is wider than a {place}"
            await page.screenshot(path=ARTEFACTS / f"{name}-{place}-{scheme}.png", full_page=True)
    await page.emulate_media(color_scheme="light")
    await page.set_viewport_size({"width": 1280, "height": 900})
