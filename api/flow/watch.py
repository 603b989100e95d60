"""Twice a second, and when the doorbell rings: what has changed, and whose streams must end for it (P9).

New prices are read here too; a stream keeps the price that it was admitted with.

The feed of changes is in the database, so a lost ring costs half a second and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.ports import AccountsUnavailable
from auth.memory import token_name
from auth.principal import NotAuthenticated

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Stream

_USED_AT_ONCE = 200

log = logging.getLogger("sluicegate.watch")


class Watch:
    """One for each worker. `doubts` are changes whose streams have not been looked at yet."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._doubts: set[tuple[str, str]] = set()
        self._blind = False

    async def run(self) -> None:
        """Until cancelled. A round that fails is logged, and the next one comes."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gate.policy.watch_seconds):
                    await self._gate.changed.wait()
            self._gate.changed.clear()
            try:
                await self.look()
                self._blind = False
            except AccountsUnavailable as error:
                if not self._blind:
                    log.warning("accounts cannot be read, nobody new gets in: %s", error)
                self._blind = True
            except Exception:
                log.exception("a look at the accounts failed")

    async def look(self) -> None:
        """Read what has changed, and cut the streams that no longer hold. Raises AccountsUnavailable."""
        memory = self._gate.authenticator.memory
        await memory.refresh()
        self._doubts |= memory.take_news()
        if not self._doubts:
            return
        streams = list(self._gate.live.values())
        for permit_id in [name for kind, name in self._doubts if kind == "stream"]:
            if permit_id in self._gate.live:
                self._gate.live[permit_id].cut(Happening.ENDED_BY_ADMIN)
        for tenant_id in [name for kind, name in self._doubts if kind == "tenant"]:
            await self._look_at_tenant(tenant_id, [s for s in streams if s.caller.tenant_id == tenant_id])
        doubted = [stream for stream in streams if self._doubts.intersection(_names(stream))]
        looks = (recheck(self._gate, stream) for stream in doubted)
        for fault in await asyncio.gather(*looks, return_exceptions=True):
            if fault is not None:
                raise fault  # the doubts stay, and all are looked at again
        kinds = {kind for kind, _ in self._doubts}
        if "price" in kinds:
            await self._gate.read_prices()
        if "catalog" in kinds:
            await self._gate.read_catalog()
        self._doubts.clear()

    async def _look_at_tenant(self, tenant_id: str, streams: list[Stream]) -> None:
        """One look-up decides for all of its streams; each key's own changes have entries of their own."""
        if streams:
            tenant = await self._gate.authenticator.memory.tenant(tenant_id)
            if tenant is None or not tenant.active:
                for stream in streams:
                    stream.cut(Happening.REVOKED)


async def note_used_for_ever(gate: Gate) -> None:
    """Write when keys were last used, every minute, beside everything else."""
    while True:
        await asyncio.sleep(gate.policy.last_used_seconds)
        await note_used(gate)


async def note_used(gate: Gate) -> None:
    """Write when keys were last used, a few at a time; what cannot be written is not worth more."""
    used = sorted(gate.authenticator.take_used().items())
    try:
        for start in range(0, len(used), _USED_AT_ONCE):
            await gate.accounts.used(dict(used[start : start + _USED_AT_ONCE]))
    except Exception as error:  # noqa: BLE001 - nothing depends on it
        log.warning("it was not written when %d keys were last used: %s", len(used), type(error).__name__)


async def recheck(gate: Gate, stream: Stream) -> None:
    """Cut the stream if its caller's credential no longer holds. Raises AccountsUnavailable."""
    try:
        stream.caller = await gate.authenticator.again(stream.caller)
    except NotAuthenticated:
        stream.cut(Happening.REVOKED)


def _names(stream: Stream) -> set[tuple[str, str]]:
    """What a change of its own credential would be called."""
    caller, names = stream.caller, set()
    if caller.key_id is not None:
        names.add(("key", caller.key_id))
    if caller.token_id is not None:
        names.add(("token", token_name(caller.tenant_id, caller.token_id)))
    return names
