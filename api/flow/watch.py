"""Twice a second, and when the doorbell rings: what has changed, and whose streams must end for it (P9).

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

log = logging.getLogger("sluicegate.watch")


class Watch:
    """One for each worker. `doubts` are changes whose streams have not been looked at yet."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._doubts: set[tuple[str, str]] = set()
        self._noted_at = gate.clock.monotonic()
        self._blind = False

    async def run(self) -> None:
        """Until cancelled. A round that fails is logged, and the next one comes."""
        policy = self._gate.policy
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(policy.watch_seconds):
                    await self._gate.changed.wait()
            self._gate.changed.clear()
            try:
                await self.look()
                self._blind = False
                if self._gate.clock.monotonic() - self._noted_at >= policy.last_used_seconds:
                    await self.note_used()
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
        if self._doubts:
            for stream in list(self._gate.live.values()):
                if self._doubts.intersection(_names(stream)):
                    await recheck(self._gate, stream)
            self._doubts.clear()

    async def note_used(self) -> None:
        """Write when keys were last used."""
        self._noted_at = self._gate.clock.monotonic()
        if used := self._gate.authenticator.take_used():
            await self._gate.accounts.used(used)


async def recheck(gate: Gate, stream: Stream) -> None:
    """Cut the stream if its caller's credential no longer holds. Raises AccountsUnavailable."""
    try:
        stream.caller = await gate.authenticator.again(stream.caller)
    except NotAuthenticated:
        stream.cut(Happening.REVOKED)


def _names(stream: Stream) -> set[tuple[str, str]]:
    """What a change would be called that concerns the stream."""
    caller = stream.caller
    names = {("tenant", caller.tenant_id or "")}
    if caller.key_id is not None:
        names.add(("key", caller.key_id))
    if caller.token_id is not None:
        names.add(("token", token_name(caller.tenant_id, caller.token_id)))
    return names
