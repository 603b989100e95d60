"""The page at `/` and the console: static files; nothing from elsewhere may run, and nothing inline."""

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
_TYPES = {".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
_FILES = {
    path.relative_to(CONSOLE).as_posix(): path
    for folder in (CONSOLE, CONSOLE / "vendor")
    for path in folder.iterdir()
    if path.suffix in _TYPES
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    """The playground."""
    return FileResponse(CONSOLE / "index.html", headers=_HEADERS)


@router.get("/admin/ui")
async def console() -> FileResponse:
    """The admins' console; it asks for a sign-in itself."""
    return FileResponse(CONSOLE / "admin.html", headers=_HEADERS)


@router.get("/portal")
async def portal() -> FileResponse:
    """The page of tenants' own admins; it asks for a key itself."""
    return FileResponse(CONSOLE / "portal.html", headers=_HEADERS)


@router.get("/static/{name:path}")
async def static(name: str) -> FileResponse:
    """One of the page's files; only those that are listed."""
    path = _FILES.get(name)
    if path is None:
        raise NotFound("No such file.")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
