"""Models and the upstreams that answer for them, as an admin has said. Pure values, and who is asked first.

A model's public name may end in `*`: then it stands for all names that begin so, and the longest beginning
wins. A tenant's own entry goes before the one for all. Without any entry every name is passed on to the
upstreams of the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Kind = Literal["openai", "azure", "anthropic", "scripted"]

SPOKEN: Mapping[str, tuple[str, ...]] = {
    "openai": ("openai_chat", "openai_responses", "openai_embeddings"),
    "azure": ("openai_chat", "openai_responses", "openai_embeddings"),
    "anthropic": ("anthropic_messages",),
    "scripted": ("openai_chat", "openai_responses", "openai_embeddings", "anthropic_messages"),
}
"""What each kind of upstream understands, unless its entry says more or less."""


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """A provider's endpoint. `base_url` "" is the provider's own; `dialects` () are those of its kind.

    `api_version` is for Azure's older form. At most `max_connections` are open from each worker.
    """

    name: str
    kind: Kind
    base_url: str = ""
    api_version: str = ""
    dialects: tuple[str, ...] = ()
    connect_seconds: float = 5.0
    silence_seconds: float | None = None
    max_connections: int = 10_000

    @property
    def spoken(self) -> tuple[str, ...]:
        """The dialects that it is asked in without translation."""
        return self.dialects or SPOKEN[self.kind]


@dataclass(frozen=True, slots=True)
class Target:
    """One of the upstreams that answer for a model, and what the model is called there ("": the same).

    Those of the lowest `order` are asked first; among equals each is first as often as its `weight` says.
    """

    upstream: str
    model: str = ""
    weight: int = 1
    order: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by its public name, for all tenants ("") or one. Times None are the gate's.

    `first_token_seconds` is how long an upstream may take to its first event before the next one is asked.
    `retries` is how many more rounds are made when all have failed.
    """

    name: str
    targets: tuple[Target, ...]
    tenant_id: str = ""
    connect_seconds: float | None = None
    first_token_seconds: float | None = None
    silence_seconds: float | None = None
    stream_seconds: float | None = None
    on_disconnect: Literal["cancel", "drain"] | None = None
    retries: int = 0

    def at(self, target: Target, asked: str) -> str:
        """What the model that was asked for is called at a target."""
        return target.model or asked


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A tenant's own key at an upstream."""

    tenant_id: str
    upstream: str
    api_key: str = field(repr=False)


class Catalog:
    """All entries, as they were last read."""

    def __init__(
        self,
        upstreams: Iterable[UpstreamSpec] = (),
        models: Iterable[ModelSpec] = (),
        keys: Iterable[ProviderKey] = (),
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.upstreams = {spec.name: spec for spec in upstreams}
        self.secrets = dict(secrets or {})  # by upstream, its key
        self._models = {(spec.tenant_id, spec.name): spec for spec in models}
        self._keys = {(key.tenant_id, key.upstream): key.api_key for key in keys}
        starts = {len(spec.name) - 1 for spec in self._models.values() if spec.name.endswith("*")}
        self._lengths = sorted(starts, reverse=True)

    @property
    def empty(self) -> bool:
        """Whether no model was ever said: then every name goes on to the environment's upstreams."""
        return not self._models

    def of(self, model: str, tenant_id: str) -> ModelSpec | None:
        """What holds for a name: the tenant's own entry before the general one, a name before a beginning."""
        for owner in (tenant_id, ""):
            for name in (model, *(f"{model[:n]}*" for n in self._lengths if n <= len(model))):
                if (found := self._models.get((owner, name))) is not None:
                    return found
        return None

    def names(self, tenant_id: str) -> list[str]:
        """The names that a tenant may ask for, without beginnings."""
        known = {spec.name for spec in self._models.values() if spec.tenant_id in {"", tenant_id}}
        return sorted(name for name in known if not name.endswith("*"))

    def key_of(self, tenant_id: str, upstream: str) -> str | None:
        """The tenant's own key there."""
        return self._keys.get((tenant_id, upstream))


def in_order(targets: Iterable[Target], chance: Callable[[], float]) -> list[Target]:
    """Who is asked first: by `order`, and by weight among equals. `chance` gives numbers in [0, 1).

    Each target draws `chance ** (1 / weight)`; the largest is first (Efraimidis and Spirakis, 2006).
    """
    return sorted(targets, key=lambda target: (target.order, -(chance() ** (1 / target.weight))))


def taken(cls: type[Any], row: Mapping[str, Any]) -> Any:
    """A value of what is stored of it; what an older release does not know is left out."""
    known = {one.name for one in fields(cls)}
    values = {name: value for name, value in row.items() if name in known}
    if "targets" in values:
        values["targets"] = tuple(taken(Target, target) for target in values["targets"])
    if "dialects" in values:
        values["dialects"] = tuple(values["dialects"])
    return cls(**values)
