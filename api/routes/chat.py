"""The metered routes: `/chat/stream` and `/v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from api.core.dialects import openai_chat, plain
from api.core.dialects.openai_chat import ChatWriter, prompt_of
from api.core.dialects.plain import PlainWriter
from api.core.meter import Meter
from api.deps import Caller, GateDep
from api.flow.stream import Order
from api.flow.walk import Walk
from api.routes.bodies import openapi_body, read_body
from api.schema import ChatRequest, ErrorAnswer, PlainRequest, StreamOptions
from auth.principal import NotAllowed, Principal

if TYPE_CHECKING:
    from api.core.dialects import Writer
    from api.flow.gate import Gate

router = APIRouter(tags=["chat"])

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be understood."},
    401: {"model": ErrorAnswer, "description": "No credential, or none that holds."},
    403: {"model": ErrorAnswer, "description": "The credential may not do that, or not with that model."},
    404: {"model": ErrorAnswer, "description": "The provider knows no such model."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    429: {"model": ErrorAnswer, "description": "A limit is reached; see Retry-After."},
    502: {"model": ErrorAnswer, "description": "The provider failed before it answered."},
    503: {"model": ErrorAnswer, "description": "Not possible right now; see Retry-After."},
    504: {"model": ErrorAnswer, "description": "The provider did not answer in time."},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}
}


@router.post(
    "/chat/stream",
    summary="Stream plain tokens",
    response_class=Response,
    responses=_STREAM | _ERRORS,
    openapi_extra=openapi_body(PlainRequest),
)
async def chat_stream(caller: Caller, request: Request) -> Response:
    r"""`data: {"token": "..."}` lines, then `data: [DONE]`.

    An error in the middle is `data: {"error": "...", "code": "..."}`.
    """
    gate: Gate = request.state.gate
    asked, _ = await read_body(request, PlainRequest)
    model = asked.model or caller.default_model or gate.policy.default_model
    _check_model(caller, model)
    body = plain.chat_body(asked.prompt, model, asked.system, asked.max_tokens)
    meter = Meter(model, prompt_of(body))
    return Walk(gate, caller, _order(request, plain.NAME, body, meter, PlainWriter()))


@router.post(
    "/v1/chat/completions",
    summary="OpenAI chat completions",
    response_class=Response,
    responses=_STREAM | _ERRORS,
    openapi_extra=openapi_body(ChatRequest),
)
async def chat_completions(caller: Caller, request: Request) -> Response:
    """As OpenAI's, streamed or not; fields that the gate does not know pass to the provider."""
    gate: Gate = request.state.gate
    asked, body = await read_body(request, ChatRequest)
    _check_model(caller, asked.model)
    writer = None
    if asked.stream:
        options = asked.stream_options or StreamOptions()
        hides_usage = gate.policy.continuous_usage and not options.continuous_usage_stats
        writer = ChatWriter(include_usage=options.include_usage, hides_usage=hides_usage)
    end_user = asked.safety_identifier or asked.user or None
    if end_user is not None:
        caller = caller.acting_for(end_user)
    meter = Meter(asked.model, prompt_of(body))
    return Walk(gate, caller, _order(request, openai_chat.NAME, body, meter, writer))


@router.get("/v1/models", summary="The models that can be asked for", response_class=Response)
async def models(caller: Caller, gate: GateDep) -> Response:
    """The provider's own list, in OpenAI's shape; of it what the credential may use."""
    found = await gate.upstream.models()
    return Response(openai_chat.models_where(found, caller.may_use), media_type="application/json")


def _order(
    request: Request, dialect: str, body: dict[str, Any], meter: Meter, writer: Writer | None
) -> Order:
    return Order(request_id=request.state.request_id, dialect=dialect, body=body, meter=meter, writer=writer)


def _check_model(caller: Principal, model: str) -> None:
    """Raises NotAllowed for a model that the key, or the token, was not issued for."""
    if not caller.may_use(model):
        raise NotAllowed("This credential may not use that model.", "model_not_allowed")
