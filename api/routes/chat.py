"""The metered routes: each dialect's own, streamed or not, and the models that they can be asked for."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from api.core.dialects import (
    anthropic_messages,
    model_lists,
    openai_chat,
    openai_embeddings,
    openai_responses,
    plain,
)
from api.core.dialects.anthropic_messages import MessagesWriter
from api.core.dialects.openai_chat import ChatWriter
from api.core.dialects.openai_responses import ResponsesWriter
from api.core.dialects.plain import PlainWriter
from api.core.meter import Meter
from api.deps import Caller, Embedder, GateDep, ModelReader
from api.edge import dialect_of
from api.errors import BadRequest, NoSuchModel, NotFound
from api.flow.asked_before import keep
from api.flow.offered import offered
from api.flow.replay import Replay
from api.flow.stream import Order
from api.flow.walk import Walk
from api.routes.bodies import openapi_body, read_body
from api.schema import (
    ChatRequest,
    EmbeddingsRequest,
    ErrorAnswer,
    MessagesRequest,
    PlainRequest,
    ResponsesRequest,
    StreamOptions,
)
from auth.principal import NotAllowed, Principal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.dialects import Dialect, Writer
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
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}}, "description": "The provider's answer."}
}
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_LONGEST_USER = 200  # characters that the ledger has room for


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
    body = plain.chat_body(asked.prompt, model, asked.system, asked.max_tokens)
    return await _walk(request, caller, openai_chat, body, PlainWriter(), name=plain.NAME)


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
    writer = None
    if asked.stream:
        options = asked.stream_options or StreamOptions()
        hides_usage = gate.policy.continuous_usage and not options.continuous_usage_stats
        writer = ChatWriter(include_usage=options.include_usage, hides_usage=hides_usage)
    caller = _for_user(caller, asked.safety_identifier or asked.user)
    return await _walk(request, caller, openai_chat, body, writer)


@router.post(
    "/v1/responses",
    summary="OpenAI responses",
    response_class=Response,
    responses=_STREAM | _ERRORS,
    openapi_extra=openapi_body(ResponsesRequest),
)
async def responses(caller: Caller, request: Request) -> Response:
    """As OpenAI's, streamed or not; fields that the gate does not know pass to the provider.

    What refers to answers that the provider keeps is refused, unless the account is the tenant's own.
    """
    asked, body = await read_body(request, ResponsesRequest)
    _check_kept(request, caller, body)
    caller = _for_user(caller, asked.safety_identifier or asked.user)
    return await _walk(request, caller, openai_responses, body, ResponsesWriter() if asked.stream else None)


@router.post(
    "/v1/messages",
    summary="Anthropic messages",
    response_class=Response,
    responses=_STREAM | _ERRORS,
    openapi_extra=openapi_body(MessagesRequest),
)
async def messages(caller: Caller, request: Request) -> Response:
    """As Anthropic's, streamed or not; fields that the gate does not know pass to the provider."""
    asked, body = await read_body(request, MessagesRequest)
    caller = _for_user(caller, asked.metadata.user_id if asked.metadata else None)
    writer = MessagesWriter() if asked.stream else None
    headers = _passed(request, "anthropic-version", "anthropic-beta")
    return await _walk(request, caller, anthropic_messages, body, writer, headers=headers)


@router.post(
    "/v1/embeddings",
    summary="OpenAI embeddings",
    response_class=Response,
    responses=_ANSWER | _ERRORS,
    openapi_extra=openapi_body(EmbeddingsRequest),
)
async def embeddings(caller: Embedder, request: Request) -> Response:
    """As OpenAI's; fields that the gate does not know pass to the provider."""
    asked, body = await read_body(request, EmbeddingsRequest)
    return await _walk(request, _for_user(caller, asked.user), openai_embeddings, body, None)


@router.get("/v1/models", summary="The models that can be asked for", response_class=Response)
async def models(caller: ModelReader, gate: GateDep, request: Request) -> Response:
    """What the credential may use, in OpenAI's shape; in Anthropic's for a caller with its headers."""
    found = openai_chat.models_where(await offered(gate, caller.tenant_id or ""), caller.may_use)
    if dialect_of(request.scope) is anthropic_messages:
        found = model_lists.as_anthropic(found)
    return Response(found, media_type="application/json")


@router.get("/v1/models/{model:path}", summary="One of the models", response_class=Response)
async def model(caller: ModelReader, gate: GateDep, request: Request, model: str) -> Response:
    """As it stands in the list of models."""
    found = openai_chat.models_where(await offered(gate, caller.tenant_id or ""), lambda name: name == model)
    if dialect_of(request.scope) is anthropic_messages:
        found = model_lists.as_anthropic(found)
    one = model_lists.only(found) if caller.may_use(model) else None
    if one is None:
        raise NotFound("There is no such model, or it is not for this credential.")
    return Response(one, media_type="application/json")


def _check_kept(request: Request, caller: Principal, body: dict[str, Any]) -> None:
    """Raises BadRequest for what refers to answers that are kept in an account which others share."""
    providers, tenant_id = request.state.gate.providers, caller.tenant_id or ""
    spec = providers.model(body["model"], tenant_id)
    keys = [] if spec is None else [providers.catalog.key_of(tenant_id, one.upstream) for one in spec.targets]
    own = bool(keys) and all(keys)
    for field in ("background",) if own else ("background", "previous_response_id", "conversation"):
        if body.get(field):
            raise BadRequest(
                f"`{field}` needs what the provider keeps of earlier answers, in an account that all tenants "
                "share: send the whole input, and read the answer as it comes.",
                field,
            )


async def _walk(
    request: Request,
    caller: Principal,
    dialect: Dialect,
    body: dict[str, Any],
    writer: Writer | None,
    *,
    name: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to come, or the one that was asked for before.

    Raises NotAllowed for a model that the key, or the token, was not issued for; NoSuchModel; Conflict.
    """
    model = body["model"]
    if not caller.may_use(model):
        raise NotAllowed("This credential may not use that model.", "model_not_allowed")
    gate: Gate = request.state.gate
    spec = gate.providers.model(model, caller.tenant_id or "")
    if spec is None:
        raise NoSuchModel(model)
    order = Order(
        request_id=request.state.request_id,
        dialect=dialect,
        body=body,
        meter=Meter(model, dialect.prompt_of(body)),
        writer=writer,
        spec=spec,
        name=name,
        headers=headers,
        patience_seconds=_patience(request),
        trace=None if gate.traces is None else _passed(request, "traceparent", "tracestate"),
    )
    if caller.terms.resume_minutes and writer is not None:
        kept_as = await keep(gate, caller, order, request.headers.get("idempotency-key"), request.url.path)
        if kept_as is not None:
            return Replay(gate, caller, order, writer, kept_as)
    return Walk(gate, caller, order)


def _for_user(caller: Principal, end_user: str | None) -> Principal:
    """The caller, acting for whom the request names: by a hash where there is no room for the name."""
    if not end_user:
        return caller
    if len(end_user) > _LONGEST_USER:
        end_user = f"sha256:{hashlib.sha256(end_user.encode('utf-8', 'replace')).hexdigest()}"
    return caller.acting_for(end_user)


def _patience(request: Request) -> float | None:
    """How long the client's SDK waits for an answer, in seconds, where it says so."""
    headers = request.headers
    said = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout") or ""
    return float(said) if _SECONDS.fullmatch(said) else None


def _passed(request: Request, *names: str) -> dict[str, str]:
    """Headers that are for the provider. Raises BadRequest for what cannot be sent on."""
    found = {name: value for name in names if (value := request.headers.get(name)) is not None}
    for name, value in found.items():
        if not (value.isascii() and value.isprintable()):
            raise BadRequest(f"The header `{name}` must be printable ASCII.")
    return found
