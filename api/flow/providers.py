"""The upstreams of one worker: their connections, and how each has done lately."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.core.breaker import Breaker, Standing
from api.core.catalog import Catalog, ModelSpec, Target, UpstreamSpec, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from api.ports import Upstream

    Build = Callable[[UpstreamSpec, str], Upstream]

log = logging.getLogger("sluicegate.providers")

_CLAUDE = "claude"


@dataclass(slots=True)
class Provider:
    """An upstream that can be asked. `live` answers are being read; `secret` is what it was built with."""

    spec: UpstreamSpec
    upstream: Upstream
    secret: str = field(default="", repr=False)
    breaker: Breaker = field(default_factory=Breaker)
    live: int = 0


class Providers:
    """By name: those of the environment, and in their place or besides those of the catalog."""

    def __init__(self, fixed: Iterable[tuple[UpstreamSpec, str]], build: Build) -> None:
        self._fixed = {spec.name: Provider(spec, build(spec, secret), secret) for spec, secret in fixed}
        self._build = build
        self._stored: dict[str, Provider] = {}
        self._retired: list[Provider] = []
        self._ready = False  # those of the environment
        self.catalog = Catalog()

    @classmethod
    def of(cls, upstream: Upstream) -> Providers:
        """One, that speaks everything."""
        return cls([(UpstreamSpec(upstream.name, "scripted"), "")], lambda _spec, _secret: upstream)

    @property
    def fixed(self) -> Mapping[str, Provider]:
        """Those of the environment."""
        return self._fixed

    def all(self) -> dict[str, Provider]:
        """Each that can be asked, by name."""
        return self._fixed | self._stored

    def get(self, name: str) -> Provider | None:
        """The one of that name."""
        return self._stored.get(name) or self._fixed.get(name)

    async def follow(self, catalog: Catalog) -> None:
        """Go by these entries. What has changed is built anew; what is read from goes on to its end.

        Each is asked for its first answer only once it is ready.
        """
        self.catalog = catalog
        kept, before = {}, self._stored
        for name, spec in catalog.upstreams.items():
            secret, known = catalog.secrets.get(name, ""), before.get(name)
            if known is not None and (known.spec, known.secret) == (spec, secret):
                kept[name] = known
            else:
                try:
                    kept[name] = Provider(spec, self._build(spec, secret), secret)
                except (OSError, ValueError) as error:
                    log.error("the upstream %s cannot be used: %s", name, type(error).__name__)  # noqa: TRY400
        new = [one for name, one in kept.items() if before.get(name) is not one]
        await self._prepare([*new, *(() if self._ready else self._fixed.values())])
        self._ready = True
        self._stored = kept
        self._retired += [one for name, one in before.items() if kept.get(name) is not one]
        for provider in [one for one in self._retired if not one.live]:
            self._retired.remove(provider)
            await provider.upstream.close()

    async def _prepare(self, providers: Iterable[Provider]) -> None:
        for provider in providers:
            try:
                await provider.upstream.prepare(provider.spec.spoken[0])
            except Exception as error:  # noqa: BLE001 - whoever asks it first will be told
                log.warning("the upstream %s is not ready: %s", provider.spec.name, type(error).__name__)

    async def close(self) -> None:
        """All connections."""
        for provider in [*self._fixed.values(), *self._stored.values(), *self._retired]:
            await provider.upstream.close()

    def model(self, asked: str, tenant_id: str) -> ModelSpec | None:
        """What holds for a model's name; while no model has been said, it goes on to the environment's."""
        if not self.catalog.empty:
            return self.catalog.of(asked, tenant_id)
        names = iter(self._fixed)
        first = next(names)
        theirs = asked.startswith(_CLAUDE) and "anthropic" in self._fixed
        return ModelSpec(asked, (Target("anthropic" if theirs else first),))

    def in_order(self, spec: ModelSpec, now: float) -> list[Target]:
        """Whom to ask, one after the other: those that have failed lately come last."""
        if len(spec.targets) == 1:
            return list(spec.targets)
        targets = in_order(spec.targets, random.random)
        return sorted(targets, key=lambda target: not self._admits(target, now))

    def _admits(self, target: Target, now: float) -> bool:
        provider = self.get(target.upstream)
        return provider is not None and provider.breaker.admits(now)

    def standings(self, now: float) -> dict[str, Standing]:
        """How each stands, by name."""
        return {name: provider.breaker.standing(now) for name, provider in sorted(self.all().items())}
