"""A caller who sends half a body, and the rest when its credential is gone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from api.accounts import KeyFields
from api.routes import bodies
from auth.principal import Scope
from tests.support.gates import BY, InProcess, serving, settings_of

if TYPE_CHECKING:
    from pathlib import Path

BODY = json.dumps({"name": "from a key that is gone", "prompt": "hi"}).encode()


class Half:
    """A request whose body is half sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def post(cls, app: InProcess, path: str, key: str) -> Half:
        host, port = app.url.removeprefix("http://").split(":")
        half = cls(*await asyncio.open_connection(host, int(port)))
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        half._writer.write(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY[:20])
        return half

    async def finish(self) -> tuple[int, bytes]:
        """Send the rest; returns the status and the body."""
        self._writer.write(BODY[20:])
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        raw = await self._reader.read()
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


async def until_authenticated(app: InProcess, key_id: str) -> None:
    """Wait until a request of that key was let in."""
    while key_id not in app.gate.authenticator.take_used():
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/v1/keys", "/auth/tokens", "/chat/stream", "/v1/chat/completions"])
async def test_a_key_revoked_before_the_body_came_does_nothing(tmp_path: Path, path: str) -> None:
    """P9: what it asked for is not done, however long ago it was authenticated."""
    async with serving(settings_of(tmp_path)) as app:
        keys = app.gate.accounts.keys(None)
        fields = KeyFields("boss", (Scope.CHAT, Scope.TENANT_ADMIN))
        info, text = await keys.issue(app.tenant, fields, by=BY)
        half = await Half.post(app, path, text)
        await until_authenticated(app, info.id)
        await keys.revoke(info.id, by=BY)
        await app.gate.accounts_changed()
        status, body = await half.finish()
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert [key.id for key in await keys.all_of(app.tenant)] == [app.key.split("_")[1], info.id]
        assert await app.events() == []


async def test_a_body_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the caller gets a 408, and its request holds nothing any more."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    async with serving(settings_of(tmp_path)) as app:
        half = await Half.post(app, "/chat/stream", app.key)
        status, body = await half.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
