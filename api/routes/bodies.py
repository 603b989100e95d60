"""JSON bodies, read after authentication and told apart from everything else that may be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from api.errors import BadRequest

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M], *, optional: bool = False) -> tuple[M, dict[str, Any]]:
    """The body, checked, and as it came. Raises BadRequest (400, or 413 from the edge).

    An empty one is taken for `{}` where it is `optional`.
    """
    raw = await request.body()
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
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise bad_field(error.errors(include_url=False, include_input=False)[0]) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def bad_field(fault: Any) -> BadRequest:
    """Pydantic's fault as a BadRequest. The caller's own value is not repeated: it may be a secret."""
    param = ".".join(str(part) for part in fault["loc"] if part != "body") or None
    message = str(fault["msg"])
    return BadRequest(f"`{param}`: {message}." if param else f"{message}.", param)


def openapi_body(model: type[BaseModel]) -> dict[str, Any]:
    """What to tell the OpenAPI page of a body that the route reads itself."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}
