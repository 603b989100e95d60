"""The call: open an upstream, and ask another one where it fails. Here, and nowhere else.

Until the first event of an answer is there, nothing has been sent to the client but heartbeats: an upstream
that cannot be reached, refuses for its own reasons, or says nothing for too long is passed over. What is
wrong with the request itself is wrong everywhere. After the first event an answer is nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from api.core.sse import EventTooLarge, Framer
from api.core.translate import CannotTranslate
from api.core.translate.ways import ODD, TranslatingWriter, way
from api.ports import Patience, UpstreamFailed

if TYPE_CHECKING:
    from api.core.catalog import ModelSpec, Target
    from api.flow.gate import Gate
    from api.flow.providers import Provider
    from api.flow.stream import Stream

log = logging.getLogger("sluicegate.call")

_ITS_OWN = frozenset({401, 402, 403, 408, 429})
"""Refusals below 500 that are about the upstream's account or load, not about the request."""

_BUSY = 429
_BROKEN = 500
_REST_SECONDS = 1.0
"""For an upstream that is at its limit and does not say for how long."""

_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.25, 4.0
"""Before another round over all upstreams; twice as long each time, and never the same."""


async def call(gate: Gate, stream: Stream) -> None:
    """Set `stream.answer`. Raises UpstreamFailed. Cancelling it closes the connection (P6)."""
    spec = stream.order.spec
    failure: UpstreamFailed | None = None
    for round_ in range(1 + spec.retries):
        if round_ and not await _paused(gate, stream, round_):
            break
        targets = gate.providers.in_order(spec, gate.clock.monotonic())
        for place, target in enumerate(targets):
            if failure is not None and _is_late(gate, stream):
                raise failure
            alone = place == len(targets) - 1 and round_ == spec.retries
            try:
                await _ask(gate, stream, target, alone=alone)
            except UpstreamFailed as error:
                if not _passes_over(error):
                    raise
                failure = failure if failure is not None and error.elsewhere else error
            else:
                return
    assert failure is not None  # noqa: S101 - a model has a target
    raise failure


def _passes_over(error: UpstreamFailed) -> bool:
    status = error.status
    return error.elsewhere or status is None or status >= _BROKEN or status in _ITS_OWN


def _is_late(gate: Gate, stream: Stream) -> bool:
    """Whether the client has had to wait for as long as it said it would."""
    patience = stream.order.patience_seconds
    return patience is not None and gate.clock.monotonic() - stream.started_at >= patience


async def _paused(gate: Gate, stream: Stream, round_: int) -> bool:
    """Wait before another round; False where nobody would be there at its end."""
    seconds = min(_PAUSE_SECONDS * 2 ** (round_ - 1), _MOST_PAUSE_SECONDS)
    seconds *= 0.5 + random.random()  # noqa: S311 - nobody gains by guessing it
    patience = stream.order.patience_seconds
    if patience is not None and gate.clock.monotonic() + seconds - stream.started_at >= patience:
        return False
    await asyncio.sleep(seconds)
    return True


async def _ask(gate: Gate, stream: Stream, target: Target, *, alone: bool) -> None:
    """Ask one upstream. Its first event is waited for where there is somebody else to ask, or a limit."""
    spec, provider = stream.order.spec, gate.providers.get(target.upstream)
    if provider is None:
        raise UpstreamFailed("The model's upstream is not there.", elsewhere=True)
    body = _translated(gate, stream, provider, spec.at(target, stream.order.body["model"]))
    first_seconds = spec.first_token_seconds
    provider.breaker.tried(gate.clock.monotonic())
    provider.live += 1  # from here on its connections stay open
    stream.called = True
    try:
        async with asyncio.timeout(first_seconds) as limit:
            await _open(gate, stream, provider, body)
            if stream.order.writer is not None and not (alone and first_seconds is None):
                await _first_event(gate, stream)
    except (UpstreamFailed, EventTooLarge, TimeoutError) as error:
        provider.live -= 1
        if isinstance(error, TimeoutError) and not limit.expired():  # the stream was given up
            provider.breaker.given_up()
            raise
        failure = _failure(error)
        _note(gate, provider, failure)
        await _let_go(stream)
        raise failure from error
    except BaseException:
        provider.live -= 1
        provider.breaker.given_up()
        raise
    provider.breaker.succeeded()
    stream.provider = provider
    stream.limit_headers["x-sluicegate-upstream"] = provider.spec.name


def _translated(gate: Gate, stream: Stream, provider: Provider, model: str) -> dict[str, Any]:
    """The request as that upstream understands it. Raises UpstreamFailed, which blames the request."""
    order = stream.order
    found = way(order.dialect, provider.spec.spoken, int(stream.came_at.timestamp()))
    if found is None:
        raise _unspoken("This model cannot be asked in this API.", "model")
    body = order.body if model == order.body["model"] else {**order.body, "model": model}
    if found.translation is not None:
        try:
            body = found.translation.request(body)
        except CannotTranslate as error:
            raise _unspoken(str(error), error.param) from None
        except ODD:
            raise _unspoken("The request has not the shape that its API gives it.", None) from None
    stream.reads, stream.writer, stream.translation = found.dialect, order.writer, found.translation
    order.meter.model = model
    if order.writer is not None:
        body = found.dialect.asking_usage(body, continuous=gate.policy.continuous_usage)
        if found.translation is not None:
            stream.writer = TranslatingWriter(order.writer, found.translation, order.dialect)
    return body


def _unspoken(message: str, param: str | None) -> UpstreamFailed:
    blame = {"message": message, "type": "invalid_request_error", "param": param, "code": "not_translatable"}
    return UpstreamFailed(message, status=400, body=blame, elsewhere=True)


async def _open(gate: Gate, stream: Stream, provider: Provider, body: dict[str, Any]) -> None:
    spec, upstream = stream.order.spec, provider.spec
    key = gate.providers.catalog.key_of(stream.caller.tenant_id or "", upstream.name)
    patience = None
    if spec.connect_seconds is not None or spec.silence_seconds is not None:
        silence = spec.silence_seconds or upstream.silence_seconds or gate.policy.silence_seconds
        patience = Patience(spec.connect_seconds or upstream.connect_seconds, silence)
    stream.answer = await provider.upstream.open(
        body, stream.reads.NAME, headers=stream.order.headers, api_key=key, patience=patience
    )


async def _first_event(gate: Gate, stream: Stream) -> None:
    """Read up to the first event. Raises UpstreamFailed where there is none, or it is an error."""
    assert stream.answer is not None  # noqa: S101 - it is open
    framer = stream.framer = Framer(gate.policy.max_event_bytes)
    while True:
        data = await stream.answer.read()
        events = framer.feed(data) if data else framer.end()
        stream.early = [event for event in events if event.data]
        if stream.early:
            if stream.reads.read(stream.early[0]).error is not None:
                raise UpstreamFailed("The provider reported an error.")
            return
        if not data:
            raise UpstreamFailed("The provider ended its answer before it began.")


def _failure(error: Exception) -> UpstreamFailed:
    if isinstance(error, UpstreamFailed):
        return error
    if isinstance(error, EventTooLarge):
        return UpstreamFailed("The provider sent an event that is too large.")
    return UpstreamFailed("The provider did not begin its answer in time.", timed_out=True)


async def _let_go(stream: Stream) -> None:
    """What an upstream has begun to say is nobody's answer."""
    answer, stream.answer = stream.answer, None
    stream.early, stream.framer = [], None
    if answer is not None:
        await answer.close()


def _note(gate: Gate, provider: Provider, failure: UpstreamFailed) -> None:
    """What a failure says of the upstream."""
    gate.numbers.add("upstream_failures", provider.spec.name, "before")
    log.info("the upstream %s failed: %s", provider.spec.name, failure.status or "no answer")
    now, breaker = gate.clock.monotonic(), provider.breaker
    asked = failure.retry_after
    rest = float(asked) if asked and asked.isascii() and asked.isdigit() else None
    if failure.status == _BUSY:
        breaker.rests(now, _REST_SECONDS if rest is None else rest)
    elif failure.status is None or failure.status >= _BROKEN:
        breaker.failed(now, random.random())  # noqa: S311 - as above
        if rest is not None:
            breaker.rests(now, rest)
    else:
        breaker.succeeded()


def broke_off(gate: Gate, stream: Stream) -> None:
    """The answer that was being read broke off."""
    if stream.provider is not None:
        gate.numbers.add("upstream_failures", stream.provider.spec.name, "midway")
        stream.provider.breaker.failed(gate.clock.monotonic(), random.random())  # noqa: S311 - as above


def reads_on(gate: Gate, spec: ModelSpec) -> bool:
    """Whether an answer is read on when its client leaves."""
    return gate.policy.reads_on if spec.on_disconnect is None else spec.on_disconnect == "drain"
