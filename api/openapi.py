"""What FastAPI does not know of our interface: bodies that routes read themselves, and how errors look.

`sluicegate openapi` prints the document; docs/openapi.json is the same, and a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api import schema, schema_accounts, schema_catalog, schema_export, schema_prices
from auth.dependencies import describe_api_key

if TYPE_CHECKING:
    from fastapi import FastAPI

OWN_BODIES = (
    schema.PlainRequest,
    schema.ChatRequest,
    schema.ResponsesRequest,
    schema.MessagesRequest,
    schema.EmbeddingsRequest,
    schema_accounts.TenantIn,
    schema_accounts.TenantPatch,
    schema_accounts.KeyIn,
    schema_accounts.KeyPatch,
    schema_accounts.RotateIn,
    schema_accounts.LoginIn,
    schema_accounts.KeySessionIn,
    schema_accounts.TokenIn,
    schema_export.RetryIn,
    schema_prices.PricesIn,
    schema_prices.MarkupIn,
    schema_catalog.UpstreamIn,
    schema_catalog.ModelIn,
    schema_catalog.CatalogIn,
    schema_catalog.Secret,
)
"""Bodies that routes read themselves, after authentication; FastAPI has to be told of them."""

_ERRORS = (schema.ErrorAnswer, schema.AnthropicErrorAnswer)
_NOBODYS = frozenset({"/healthz", "/readyz", "/metrics", "/streamz"})
"""Operators' own: they answer no error objects."""


def describe(app: FastAPI) -> None:
    """Have the app's document say all that callers may rely on."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            describe_api_key(document)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for model in (*OWN_BODIES, *_ERRORS):
                described = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= described.pop("$defs", {}) | {model.__name__: described}
            for path, methods in document["paths"].items():
                if path not in _NOBODYS:
                    _describe_errors(path, methods)
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's, which we never answer
                schemas.pop(name, None)
        return app.openapi_schema or document

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_errors(path: str, methods: dict[str, Any]) -> None:
    shape = "AnthropicErrorAnswer" if path == "/v1/messages" else "ErrorAnswer"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    for operation in methods.values():
        responses = operation["responses"]
        responses.pop("422", None)  # what is wrong with a request is a 400
        for status, answer in responses.items():
            if status[0] in "45":
                answer["content"] = content
        responses["4XX"] = {"description": "Refused: the error object says why.", "content": content}
        responses["5XX"] = {
            "description": "Not possible now, or the provider failed.",
            "content": content,
        }
