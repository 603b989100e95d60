"""The edge, as plain ASGI: request ids, the body cap, security headers. Costs nothing per chunk.

Every answer carries `x-request-id`: the caller's own where it is 1 to 128 safe characters, else a new one.
Errors have the shape of the API that was called: `dialect_of` says which.
A body over the cap is refused with 413 as soon as that is known, whether it is declared or chunked.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from starlette.datastructures import Headers, MutableHeaders

from api.core.dialects import anthropic_messages, openai_chat
from api.errors import BadRequest, failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from api.core.dialects import Dialect, Failure

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_SECURITY_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),  # keys, tokens and usage are for the caller alone
)


_ANTHROPIC = "/v1/messages"

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Whose work it is that is being done: for the logs."""


class Connection(NamedTuple):
    """What ASGI has no words for, taken from uvicorn's `send` where it is a method of such an object.

    `send` is the server's own: past the head of an answer nobody in between has anything to add.
    `abort` breaks the connection at once, without waiting for a client that does not read to take the rest.
    With a second request in the pipe uvicorn reads no more, and tells only that request when the client
    leaves: `resume_reading` reads on, and `is_gone` says it. On a server that lacks them nothing is done.
    """

    send: Send
    abort: Callable[[], None]
    resume_reading: Callable[[], None]
    is_gone: Callable[[], bool]

    @classmethod
    def of(cls, send: Send) -> Connection:
        """The connection behind a server's `send`."""
        cycle = getattr(send, "__self__", None)
        transport = getattr(cycle, "transport", None)
        abort = getattr(transport, "abort", None)
        resume = getattr(getattr(cycle, "flow", None), "resume_reading", None)
        return cls(
            send, abort or _nothing, resume or _nothing, getattr(transport, "is_closing", None) or bool
        )


def _nothing() -> None:
    """On a server without that door."""


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        anthropic = dialect_of(scope) is anthropic_messages
        scope["state"]["request_id"] = request_id
        REQUEST_ID.set(request_id)

        def send_with_headers(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                out = MutableHeaders(raw=message.setdefault("headers", []))
                out["x-request-id"] = request_id
                if anthropic:
                    out["request-id"] = request_id
                for name, value in _SECURITY_HEADERS:
                    out.setdefault(name, value)
            return send(message)

        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_body_bytes:
            await send_failure(send_with_headers, self._too_large(), dialect_of(scope), request_id)
            return
        await self._app(scope, self._capped(receive), send_with_headers)

    def _capped(self, receive: Receive) -> Receive:
        left = self._max_body_bytes

        async def capped() -> Message:
            nonlocal left
            message = await receive()
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                if left < 0:
                    raise self._error()
            return message

        return capped

    def _error(self) -> BadRequest:
        return BadRequest(f"The body is larger than {self._max_body_bytes} bytes.", status=413)

    def _too_large(self) -> Failure:
        return failure_of(self._error())


def dialect_of(scope: Scope) -> Dialect:
    """In whose shape a caller of that path, or with such headers, expects errors: OpenAI's or Anthropic's."""
    theirs = scope["path"].startswith(_ANTHROPIC) or any(
        k == b"anthropic-version" for k, _ in scope["headers"]
    )
    return anthropic_messages if theirs else openai_chat


async def send_failure(send: Send, failure: Failure, dialect: Dialect, request_id: str) -> None:
    """Answer with an error as JSON. A body that was not read is thrown away by the server as it comes."""
    body = dialect.error_body(failure, request_id)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in failure.headers.items()),
    ]
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
