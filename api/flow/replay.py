"""The answer to a request that was made before: what the first one got, and gets, from its beginning on.

It is neither admitted nor booked nor charged: the stream runs once, on whichever worker. Its caller's
credential is looked at as any stream's is, and it ends with the worker's drain.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from api.core.booking import Happening
from api.edge import send_failure
from api.errors import Conflict, Cut, Draining, failure_of
from api.flow.keep_stream import END, TOO_LARGE
from api.flow.relay import SSE_HEADERS
from api.ports import AccountsUnavailable, GateFull, LimiterUnavailable
from auth.principal import NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from api.core.dialects import Writer
    from api.flow.gate import Gate
    from api.flow.stream import Order
    from auth.principal import Principal

_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.02, 0.2
_LOOK_SECONDS = 1.0
_MOST_REPLAYS = 1000  # of one worker at one time

LOST = Conflict(
    "The stream that this key belongs to did not end well. Send the request again.", "stream_lost"
)
LARGE = Conflict("The stream that this key belongs to was too large to be kept.", "replay_too_large")


class Replay(Response):
    """Reads what is kept, and sends it."""

    def __init__(self, gate: Gate, caller: Principal, order: Order, writer: Writer, name: str) -> None:
        super().__init__()
        self._gate, self._caller, self._order, self._writer, self._name = gate, caller, order, writer, name
        self._begun = False
        self._sent_at = self._looked_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Answer; returns when it is over, or nobody reads it."""
        gate, connection = self._gate, scope["state"]["connection"]
        if gate.replaying >= _MOST_REPLAYS:
            await self._failed(send, GateFull(_LOOK_SECONDS))
            return
        gate.replaying += 1
        try:
            await self._follow(send, connection.is_gone)
        except (Conflict, Cut, Draining, LimiterUnavailable, AccountsUnavailable) as error:
            await self._failed(send, error)
        finally:
            gate.replaying -= 1

    async def _follow(self, send: Send, is_gone: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = self._looked_at = loop.time()
        place, pause = 1, _PAUSE_SECONDS
        while not is_gone():
            found = await self._gate.replays.read(self._caller.tenant_id or "", self._name, place)
            if found is None:
                await self._still_welcome()  # which may be why
                raise LOST
            if TOO_LARGE in found:
                raise LARGE
            place += len(found)
            over = bool(found) and found[-1] == END
            if found:
                await self._send(send, b"".join(found[:-1] if over else found), more=not over)
                pause = _PAUSE_SECONDS
            if over:
                return
            await self._look(send, loop.time())
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _MOST_PAUSE_SECONDS)

    async def _look(self, send: Send, now: float) -> None:
        """Whether it may go on, and whether it has been silent for long."""
        if self._gate.draining:
            raise Draining
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            await self._still_welcome()
        if now - self._sent_at >= self._gate.policy.heartbeat_seconds:
            await self._send(send, self._writer.heartbeat(), more=True)

    async def _still_welcome(self) -> None:
        """Raises Cut where the caller's credential holds no more."""
        expires = self._caller.expires_at
        if expires is not None and self._gate.clock.unix() >= expires:
            raise Cut(Happening.EXPIRED)
        try:
            self._caller = await self._gate.authenticator.again(self._caller)
        except NotAuthenticated:
            raise Cut(Happening.REVOKED) from None

    async def _send(self, send: Send, data: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            headers = [*SSE_HEADERS, (b"x-sluicegate-replay", b"true")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent_at = asyncio.get_running_loop().time()

    async def _failed(self, send: Send, error: Exception) -> None:
        failure = failure_of(error)
        if self._begun:
            await self._send(send, self._writer.error(failure), more=False)
        else:
            await send_failure(send, failure, self._order.dialect, self._order.request_id)
