"""Models, upstreams and tenants' own keys as they are kept: the values, the port to them, and its refusals.

Every change stands in the audit log, written in the same transaction. Workers read all of it anew when the
feed of changes tells of it. Keys are sealed; nothing of them is ever shown but their last four characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.accounts import Actor
    from api.core.catalog import Catalog, ModelSpec, UpstreamSpec


@dataclass(frozen=True, slots=True)
class KeptUpstream:
    """An upstream. `key_hint` is the end of its key, None where it has none."""

    spec: UpstreamSpec
    key_hint: str | None
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model."""

    spec: ModelSpec
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A tenant's own key at an upstream."""

    tenant_id: str
    upstream: str
    key_hint: str
    updated_at: datetime
    updated_by: str


class CatalogFile(NamedTuple):
    """What is to hold: upstreams, the keys of those that bring one, and models."""

    upstreams: Sequence[UpstreamSpec]
    secrets: Mapping[str, str]
    models: Sequence[ModelSpec]


class CatalogChange(NamedTuple):
    """One entry that an import adds, changes or removes: `what` it does, to which kind, by its name."""

    what: str
    kind: str
    name: str


class NoSuchUpstream(Exception):  # noqa: N818 - reads as what happened
    """There is no upstream of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no upstream `{name}`.")


class NoSuchEntry(Exception):  # noqa: N818
    """There is no such model, or key of a tenant."""


class UpstreamInUse(Exception):  # noqa: N818
    """A model names the upstream that should go."""

    def __init__(self, name: str, model: str) -> None:
        super().__init__(f"The model `{model}` is answered by `{name}`: change or remove it first.")


class CatalogBook(Protocol):
    """All entries. Raises AccountsUnavailable where the database is away."""

    async def load(self) -> Catalog:
        """All that workers need."""
        ...

    async def upstreams(self) -> list[KeptUpstream]:
        """All upstreams, by name."""
        ...

    async def models(self, tenant_id: str | None = None) -> list[KeptModel]:
        """All models, by name; of a tenant its own alone."""
        ...

    async def provider_keys(self, tenant_id: str) -> list[KeptKey]:
        """A tenant's own keys, by upstream. Raises NoSuchTenant."""
        ...

    async def put_upstream(self, spec: UpstreamSpec, api_key: str | None, *, by: Actor) -> KeptUpstream:
        """Add or replace one; `api_key` None leaves the key as it was."""
        ...

    async def remove_upstream(self, name: str, *, by: Actor) -> None:
        """Raises NoSuchUpstream, UpstreamInUse."""
        ...

    async def put_model(self, spec: ModelSpec, *, by: Actor, known: frozenset[str]) -> KeptModel:
        """Add or replace one. `known` upstreams are there besides. Raises NoSuchUpstream, NoSuchTenant."""
        ...

    async def remove_model(self, name: str, tenant_id: str, *, by: Actor) -> None:
        """Raises NoSuchEntry."""
        ...

    async def put_key(self, tenant_id: str, upstream: str, api_key: str, *, by: Actor) -> KeptKey:
        """Add or replace a tenant's own key. Raises NoSuchTenant."""
        ...

    async def remove_key(self, tenant_id: str, upstream: str, *, by: Actor) -> None:
        """Raises NoSuchTenant, NoSuchEntry."""
        ...

    async def import_file(
        self,
        file: CatalogFile,
        *,
        by: Actor,
        known: frozenset[str],
        prune: bool = False,
        dry_run: bool = False,
    ) -> list[CatalogChange]:
        """Make what the file says hold, and with `prune` nothing else. Raises as its parts do."""
        ...

    async def reseal(self, *, by: Actor) -> int:
        """Seal all keys anew under the present secret; returns how many were under an older one."""
        ...


def shown(spec: Any) -> dict[str, Any]:
    """A spec's fields, as JSON has them; those that say nothing are left out."""
    out = {}
    for name in spec.__dataclass_fields__:
        value = getattr(spec, name)
        if name == "targets":
            value = [shown(target) for target in value]
        if value not in (None, "", ()):
            out[name] = list(value) if isinstance(value, tuple) else value
    return out
