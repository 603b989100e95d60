"""Request and response models: what the OpenAPI page shows, and what bodies are checked against.

`ChatRequest` names only the fields that the gate itself reads; everything else passes to the provider.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

# What is stored and shown must not break a row, a log line or a terminal.
# Control characters, and those that turn the direction of text, have no place in names.
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+$"
ModelName = Annotated[str, Field(max_length=256, pattern=PRINTABLE)]
Name = Annotated[str, Field(max_length=200, pattern=PRINTABLE)]


class PlainRequest(BaseModel):
    """`POST /chat/stream`."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"prompt": "Why is the sky blue?"}}
    )

    prompt: Annotated[str, Field(min_length=1)]
    model: ModelName | None = None
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`, and vLLM's `continuous_usage_stats`: usage in every chunk."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ChatMessage(BaseModel):
    """OpenAI's message; content and whatever else it has pass through."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`: OpenAI's body. Fields that are not named here pass through."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "example": {
                "model": "gpt-4o-mini",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "stream": True,
            }
        },
    )

    model: ModelName
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None


class ResponsesRequest(BaseModel):
    """`POST /v1/responses`: OpenAI's body. Fields that are not named here pass through."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "example": {"model": "gpt-4o-mini", "input": "Why is the sky blue?", "stream": True}
        },
    )

    model: ModelName
    input: str | list[dict[str, Any]]
    stream: bool | None = None
    user: Name | None = None
    safety_identifier: Name | None = None


class Metadata(BaseModel):
    """Anthropic's `metadata`: who of the caller's users it is for."""

    model_config = ConfigDict(extra="allow", strict=True)

    user_id: Annotated[str, Field(max_length=4096, pattern=PRINTABLE)] | None = None


class MessagesRequest(BaseModel):
    """`POST /v1/messages`: Anthropic's body. Fields that are not named here pass through."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "example": {
                "model": "claude-sonnet-4-5",
                "max_tokens": 1024,
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "stream": True,
            }
        },
    )

    model: ModelName
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class EmbeddingsRequest(BaseModel):
    """`POST /v1/embeddings`: OpenAI's body. Fields that are not named here pass through."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"example": {"model": "text-embedding-3-small", "input": "Why is the sky blue?"}},
    )

    model: ModelName
    input: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1)]
    user: Name | None = None


class LimitState(BaseModel):
    """A limit that binds you, and what is left of it. `of` is tenant, key, token or user (an end user).

    All of it is there again in `reset_seconds`; null where that is not a matter of time. One in `shadow`
    refuses nothing; `would_refuse` is how often it would have, for all of its kind in your tenant.
    """

    limit: str
    of: str
    amount: int
    remaining: int
    reset_seconds: int | None
    shadow: bool
    would_refuse: int


class StreamOut(BaseModel):
    """A stream that runs, as its last checkpoint has it. Times are UTC.

    `state` is live; lost, where its worker has not been heard of for a lease; or unknown, while Redis does
    not answer.
    """

    id: str
    state: str
    tenant_id: str
    key_id: str | None
    token_id: str | None
    end_user: str | None
    model: str
    worker: str
    request_id: str
    started_at: datetime
    age_seconds: float
    input_tokens: int
    output_tokens: int


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every error answer, but for those of `/v1/messages`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "message": "You have 20 streams open, which is your limit. Retry when one has ended.",
                    "type": "rate_limit_error",
                    "param": None,
                    "code": "rate_limit_exceeded",
                }
            }
        }
    )

    error: ErrorObject


class AnthropicError(BaseModel):
    """Anthropic's error object."""

    type: str
    message: str


class AnthropicErrorAnswer(BaseModel):
    """The body of an error answer of `/v1/messages`, and to callers with Anthropic's headers."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "error",
                "error": {"type": "authentication_error", "message": "Incorrect API key or token provided."},
                "request_id": "req_0123456789abcdef01234567",
            }
        }
    )

    type: str
    error: AnthropicError
    request_id: str
