"""The page at `/`: static files, under a policy that allows nothing from elsewhere and nothing inline."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from api.errors import NotFound

CONSOLE = Path(__file__).parent.parent / "console"

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
}
_TYPES = {"client.js": "text/javascript", "page.js": "text/javascript", "page.css": "text/css"}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    """The playground."""
    return FileResponse(CONSOLE / "index.html", headers=_HEADERS)


@router.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """One of the page's files; only those that are listed."""
    if name not in _TYPES:
        raise NotFound("No such file.")
    return FileResponse(CONSOLE / name, media_type=_TYPES[name], headers=_HEADERS)
