"""Models of upstreams, models and tenants' own keys, as admins set and read them: docs/models.md."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from api.cataloging import CatalogFile
from api.core.catalog import ModelSpec, Target, UpstreamSpec
from api.core.price_file import read_prices
from api.schema import PRINTABLE, ModelName
from api.schema_prices import Amounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.money import Price

UPSTREAM_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
UpstreamName = Annotated[str, Field(pattern=UPSTREAM_NAME)]
Dialect = Literal["openai_chat", "openai_responses", "openai_embeddings", "anthropic_messages"]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


def _printable(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII without spaces: it goes into a header")
    return key


ApiKey = Annotated[SecretStr, Field(min_length=1, max_length=4096), AfterValidator(_printable)]


class Secret(BaseModel):
    """A provider's key, which is written and never shown."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, json_schema_extra={"example": {"api_key": "sk-..."}}
    )

    api_key: ApiKey


class UpstreamIn(BaseModel):
    """A provider's endpoint. Without `api_key` it keeps the one that it has."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={
            "example": {"kind": "openai", "base_url": "https://api.openai.com/v1", "api_key": "sk-..."}
        },
    )

    kind: Literal["openai", "azure", "anthropic", "scripted"]
    base_url: Annotated[str, Field(max_length=500)] = ""
    api_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{0,40}$")] = ""
    dialects: Annotated[list[Dialect], Field(max_length=4)] = []
    connect_seconds: Seconds = 5.0
    silence_seconds: Seconds | None = None
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    api_key: ApiKey | None = None

    @model_validator(mode="after")
    def _has_an_address(self) -> UpstreamIn:
        if self.kind == "azure" and not self.base_url:
            raise ValueError("`base_url` is needed: https://RESOURCE.openai.azure.com")
        return self

    def spec(self, name: str) -> UpstreamSpec:
        """The entry."""
        fields = self.model_dump(exclude={"api_key"})
        return UpstreamSpec(name=name, **fields | {"dialects": tuple(self.dialects)})

    @property
    def secret(self) -> str | None:
        """The key."""
        return None if self.api_key is None else self.api_key.get_secret_value()


class UpstreamOut(BaseModel):
    """An upstream. `key_hint` is the end of its key; `standing` is its breaker's, on the worker that answers.

    Those of the environment have no `updated_at`.
    """

    name: str
    kind: str
    base_url: str
    api_version: str
    dialects: list[str]
    connect_seconds: float
    silence_seconds: float | None
    max_connections: int
    key_hint: str | None
    standing: str | None
    updated_at: datetime | None
    updated_by: str


class TargetIn(BaseModel):
    """An upstream that answers for a model, and what the model is called there (empty: the same)."""

    model_config = ConfigDict(extra="forbid")

    upstream: UpstreamName
    model: Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    order: Annotated[int, Field(ge=0, le=1000)] = 0


class ModelFields(BaseModel):
    """Who answers for a model, and how. What is null is as the gate's settings have it."""

    model_config = ConfigDict(extra="forbid")

    targets: Annotated[list[TargetIn], Field(min_length=1, max_length=50)]
    connect_seconds: Seconds | None = None
    first_token_seconds: Seconds | None = None
    silence_seconds: Seconds | None = None
    stream_seconds: Seconds | None = None
    on_disconnect: Literal["cancel", "drain"] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] = 0

    def spec(self, name: str, tenant_id: str) -> ModelSpec:
        """The entry."""
        rest = self.model_dump(include=set(ModelFields.model_fields) - {"targets"})
        targets = tuple(Target(**target.model_dump()) for target in self.targets)
        return ModelSpec(name=name, tenant_id=tenant_id, targets=targets, **rest)


class ModelIn(ModelFields):
    """A model, for all tenants or for one. `price` adds a version to the price list, from now on."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "fast",
                "targets": [
                    {"upstream": "openai", "model": "gpt-4o-mini"},
                    {"upstream": "anthropic", "model": "claude-haiku-4-5", "order": 1},
                ],
                "first_token_seconds": 5,
                "price": {"input": "0.15", "output": "0.60"},
            }
        },
    )

    name: ModelName
    tenant_id: Annotated[str, Field(max_length=40, pattern=PRINTABLE)] | None = None
    price: dict[str, Any] | None = None

    @field_validator("name")
    @classmethod
    def _star_at_the_end(cls, name: str) -> str:
        if not name or "*" in name[:-1]:
            raise ValueError("may have a `*` at its end alone")
        return name


class ModelOut(ModelFields):
    """A model, and what it costs now; null where it has no price."""

    name: str
    tenant_id: str | None
    price: Amounts | None
    updated_at: datetime
    updated_by: str


class ProviderKeyOut(BaseModel):
    """A tenant's own key at an upstream, by its end."""

    upstream: str
    key_hint: str
    updated_at: datetime
    updated_by: str


class CatalogIn(BaseModel):
    """Upstreams by name, and models: what is to hold. With `prune` nothing else does."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={
            "example": {
                "upstreams": {"vllm": {"kind": "openai", "base_url": "http://vllm:8000/v1"}},
                "models": [{"name": "*", "targets": [{"upstream": "vllm"}]}],
            }
        },
    )

    upstreams: Annotated[dict[UpstreamName, UpstreamIn], Field(max_length=1000)] = {}
    models: Annotated[list[ModelIn], Field(max_length=10_000)] = []
    prune: bool = False
    dry_run: bool = False

    @property
    def file(self) -> CatalogFile:
        """What it says."""
        secrets = {name: one.secret for name, one in self.upstreams.items() if one.secret is not None}
        models = [one.spec(one.name, one.tenant_id or "") for one in self.models]
        return CatalogFile([one.spec(name) for name, one in self.upstreams.items()], secrets, models)


def prices_of(models: list[ModelIn]) -> Mapping[str, Price]:
    """The prices that come with models, by name. Raises ValueError, as a price file does."""
    given = {one.name: one.price for one in models if one.price is not None}
    return read_prices(given).prices if given else {}


class CatalogChangeOut(BaseModel):
    """What an import does to one entry: add, change or remove."""

    what: str
    kind: str
    name: str
