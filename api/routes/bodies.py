"""JSON bodies, read after authentication and told apart from everything else that may be sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from api.errors import BadRequest
from auth.dependencies import still_holds

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_SECONDS = 60
"""How long a caller may take to send a body: somebody who never does must not be waited for."""

MAX_OBJECTS = 50_000
MAX_ITEMS = 4096
"""Bounds on what one request may make the event loop check: 10 MB of `{"a":1}` would hold it for seconds."""

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M], *, optional: bool = False) -> tuple[M, dict[str, Any]]:
    """The body, checked, and as it came. Raises BadRequest (400, 408, or 413 from the edge).

    An empty one is taken for `{}` where it is `optional`. A caller may have taken its time to send it, so
    its credential is looked at again: raises NotAuthenticated where it holds no more (P9).
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.body()
    except TimeoutError:
        raise BadRequest(f"The body did not come within {BODY_SECONDS} seconds.", status=408) from None
    await still_holds(request)
    if raw.count(b"{") > MAX_OBJECTS:
        raise BadRequest(f"The body has more than {MAX_OBJECTS} objects.", status=413)
    if not raw and optional:
        raw = b"{}"
    if not raw:
        raise BadRequest("The body is empty; a JSON object is needed.")
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not JSON in UTF-8, or is nested too deeply.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return check(body, model), body


def check(body: dict[str, Any], model: type[M]) -> M:
    """The body as `model`. Raises BadRequest for the first fault, with the field's name."""
    if _too_many(body):
        raise BadRequest(f"No object or list of a request may have more than {MAX_ITEMS} members.")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise bad_field(error.errors(include_url=False, include_input=False)[0]) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _too_many(body: dict[str, Any]) -> bool:
    """Whether the body, a message or a message's content is larger than anybody needs."""
    messages = body.get("messages", body.get("input"))
    if len(body) > MAX_ITEMS or not isinstance(messages, list):
        return len(body) > MAX_ITEMS
    parts = [message for message in messages[:MAX_ITEMS] if isinstance(message, dict)]
    contents = [part for message in parts if isinstance(part := message.get("content"), list)]
    too_long = len(messages) > MAX_ITEMS and not isinstance(messages[0], int)  # tokens, to be embedded
    return too_long or any(len(item) > MAX_ITEMS for item in [*parts, *contents])


def bad_field(fault: Any) -> BadRequest:
    """Pydantic's fault as a BadRequest. The caller's own value is not repeated: it may be a secret."""
    param = ".".join(str(part) for part in fault["loc"] if part != "body") or None
    message = str(fault["msg"])
    return BadRequest(f"`{param}`: {message}." if param else f"{message}.", param)


def openapi_body(model: type[BaseModel]) -> dict[str, Any]:
    """What to tell the OpenAPI page of a body that the route reads itself."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}
