"""create_app: routers, the edge, error handlers, and the lifespan. Tests run this very app, on other ports.

The lifespan drains before anything is closed: it hears SIGTERM beside the server, because the server calls
the shutdown half only when all connections have ended by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from slowapi.errors import RateLimitExceeded
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api import openapi, runtime
from api.edge import Connection, Edge, dialect_of
from api.errors import ROWS, TooManyAttempts, failure_of
from api.routes import (
    catalog,
    chat,
    export,
    keys,
    limits,
    live,
    metrics,
    ops,
    pages,
    prices,
    sessions,
    sign_in,
    streams,
    tenants,
    tokens,
    usage,
)
from api.routes.bodies import bad_field
from api.routes.throttles import by_caller, throttle
from auth.passwords import Hasher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from api.deps import LifespanState
    from api.flow.gate import Gate
    from api.settings import Settings

    OpenPorts = Callable[[Settings], AbstractAsyncContextManager[LifespanState]]

log = logging.getLogger("sluicegate")

_EXPOSED = [
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
]
"""What pages of other origins may read of an answer's headers."""


class Application(FastAPI):
    """FastAPI behind the edge, and behind what is told of other origins and of proxies."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._outermost: ASGIApp = Edge(super().__call__, max_body_bytes=settings.max_body_bytes)
        if settings.allowed_origins:
            self._outermost = CORSMiddleware(
                self._outermost,
                allow_origins=settings.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=_EXPOSED,
                max_age=3600,
            )
        if settings.proxies:
            self._outermost = ProxyHeadersMiddleware(self._outermost, settings.trusted_hosts)  # type: ignore[arg-type, assignment]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve. The connection is looked at here, because nobody has wrapped the server's `send` yet."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["connection"] = Connection.of(send)
        await self._outermost(scope, receive, send)


def create_app(settings: Settings, open_ports: OpenPorts = runtime.open_ports) -> Application:
    """The application on the ports that `open_ports` opens."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[LifespanState]:
        async with open_ports(settings) as state:
            with _heard_signals(state["gate"]):
                yield state
            await state["gate"].drained()
        hasher.close()

    hasher = Hasher()
    app = Application(
        settings,
        title="Sluicegate",
        version=version("sluicegate"),
        summary="A multi-tenant streaming gateway for LLMs.",
        lifespan=lifespan,
    )
    limiter = throttle(settings.redis_url)
    own_keys = [by_caller(limiter, "300/minute", "own_keys")]
    app.router.routes.extend(chat.router.routes)  # first, and found without asking any other router
    for own in (keys.own, tokens.own):
        app.include_router(own, dependencies=own_keys)
    for router in (
        usage.router,
        limits.router,
        streams.router,
        streams.own,
        live.router,
        sign_in.router(limiter, hasher),
        sessions.router(limiter),
        keys.admin,
        tokens.router,
        tenants.router,
        prices.router,
        catalog.router,
        export.router,
        ops.router,
        metrics.router,
        pages.router,
    ):
        app.include_router(router)
    _handle_errors(app)
    openapi.describe(app)
    return app


@contextmanager
def _heard_signals(gate: Gate) -> Iterator[None]:
    """Begin the drain at SIGTERM and SIGINT, then let the server's own handler have them."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def hear(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(gate.begin_drain)
        server = before[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    try:
        for stop in (signal.SIGTERM, signal.SIGINT):
            before[stop] = signal.getsignal(stop)
            signal.signal(stop, hear)
    except ValueError:  # not the main thread: then whoever runs us has the signals
        log.debug("signals are not ours to hear")
    try:
        yield
    finally:
        for heard, handler in before.items():
            if signal.getsignal(heard) is hear:
                signal.signal(heard, handler)


def _handle_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        failure = failure_of(error)
        body = dialect_of(request.scope).error_body(failure, request.state.request_id)
        return Response(body, failure.status, dict(failure.headers), "application/json")

    async def throttled(request: Request, _error: Exception) -> Response:
        return await answer(request, TooManyAttempts(retry_after_seconds=60))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        return await answer(request, bad_field(error.errors()[0]))

    for error in (*ROWS, HTTPException, Exception):
        app.add_exception_handler(error, answer)
    app.add_exception_handler(RateLimitExceeded, throttled)
    app.add_exception_handler(RequestValidationError, invalid)
