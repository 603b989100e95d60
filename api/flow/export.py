"""The export: events leave the outbox in batches, for as long as this worker leads.

Nothing is claimed before it is delivered: the batch is sent, and marked once the receiver took it. A worker
that dies in between, or leads no more without knowing it, sends a batch again: events keep their ids.

A receiver that is away stops the whole export, for longer each time. A batch that is refused is halved until
the culprit is alone; it comes again by itself, later and later, and is dead after some refusals, if the
receiver takes other events meanwhile.
"""

from __future__ import annotations

import logging
import random
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from api.core import cloud_events, delivery
from api.core.delivery import Verdict
from api.exports import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from api.exports import Answer, Outbox, Outgoing, Receiver
    from api.ports import Clock

log = logging.getLogger("sluicegate.export")

_PRUNE_EVERY_SECONDS = 600.0
_PRUNED_AT_ONCE = 5000


class Terms(NamedTuple):
    """How to export. `key` signs; None signs nothing."""

    source: str
    batch: int
    key: bytes | None


class Stopped(Exception):  # noqa: N818 - reads as what happened
    """The receiver is away, or somebody else leads."""


class Export:
    """Repeat `rounds` in a task of its own: a slow receiver must hold up nobody else."""

    def __init__(
        self,
        outbox: Outbox,
        receiver: Receiver,
        clock: Clock,
        leads: Callable[[], Awaitable[bool]],
        terms: Terms,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._receiver = receiver
        self._clock = clock
        self._leads = leads
        self._terms = terms
        self._jitter = jitter
        self._failures = 0
        self._took_at = float("-inf")
        self._again_at = clock.monotonic()
        self._prune_at = clock.monotonic()
        self._said: str | None = None

    async def rounds(self) -> None:
        """Send all that is due."""
        while await self.round():
            pass

    async def round(self) -> bool:
        """Send the next batch. True: there is more to do at once."""
        if self._clock.monotonic() < self._again_at:
            return False
        await self._prune()
        found = await self._outbox.due(self._terms.batch)
        gone = [one for one in found if one.event is None]
        if gone and await self._leads():
            await self._bury(gone)
        here = sorted((one for one in found if one.event is not None), key=_by_time)
        # What was refused before goes alone, or it would have every batch refused.
        batches = [[one] for one in here if one.attempts]
        batches.insert(0, [one for one in here if not one.attempts])
        try:
            for batch in batches:
                if batch:
                    await self._send(batch)
        except Stopped:
            return False
        return len(found) == self._terms.batch

    async def _send(self, batch: Sequence[Outgoing]) -> None:
        """Deliver a batch, or what is not at fault in it. Raises Stopped."""
        if not await self._leads():
            raise Stopped
        ids = [one.event_id for one in batch]
        answer = await self._deliver(batch, ids)
        verdict = delivery.verdict_of(answer.status)
        if verdict is Verdict.TAKEN:
            await self._outbox.delivered(ids)
            self._took_at = self._clock.monotonic()
            self._back()
        elif verdict is not Verdict.REFUSED:
            await self._away(ids, answer, verdict)
            raise Stopped
        elif len(batch) == 1:
            await self._refused(batch[0], answer)
            self._back()
        else:
            half = len(batch) // 2
            await self._send(batch[:half])
            await self._send(batch[half:])

    async def _deliver(self, batch: Sequence[Outgoing], ids: Sequence[str]) -> Answer:
        body = cloud_events.batch_of(
            [
                cloud_events.cloud_event(one.event, one.external_id, self._terms.source)
                for one in batch
                if one.event is not None
            ]
        )
        headers = cloud_events.signed(
            body,
            message_id=cloud_events.batch_id(ids),
            unix_seconds=int(self._clock.unix()),
            key=self._terms.key,
        )
        return await self._receiver.deliver(body, {"content-type": cloud_events.CONTENT_TYPE} | headers)

    def _back(self) -> None:
        if self._said is not None:
            log.warning("the export's receiver is back")
        self._failures, self._said = 0, None

    async def _away(self, ids: Sequence[str], answer: Answer, verdict: Verdict) -> None:
        self._failures += 1
        asked = delivery.retry_after(answer.retry_after, self._clock.now())
        wait = delivery.pause_seconds(self._failures, asked, self._jitter())
        self._again_at = self._clock.monotonic() + wait
        reason = _reason(answer)
        if reason != self._said:
            self._said = reason
            if verdict is Verdict.MISCONFIGURED:
                log.error(
                    "the export's receiver answers %s: look at EXPORT_URL, EXPORT_TOKEN and EXPORT_SECRET; "
                    "events wait until it takes them",
                    reason,
                )
            else:
                log.warning("the export's receiver is away (%s): events wait", reason)
        await self._outbox.failed(ids, _described(answer))

    async def _refused(self, one: Outgoing, answer: Answer) -> None:
        attempts = one.attempts + 1
        next_at = None
        takes_others = self._clock.monotonic() - self._took_at <= delivery.LATELY_SECONDS
        if attempts >= delivery.MAX_ATTEMPTS and takes_others:
            log.error("an event is a dead letter: %s (%s)", one.event_id, _reason(answer))
        else:
            next_at = self._clock.now() + timedelta(seconds=delivery.refused_seconds(attempts))
        await self._outbox.refused([Refusal(one.event_id, attempts, _described(answer), next_at)])

    async def _bury(self, gone: Sequence[Outgoing]) -> None:
        log.error("%d events are dead letters: the ledger keeps them no more", len(gone))
        await self._outbox.refused(
            [Refusal(one.event_id, one.attempts, "the ledger keeps the event no more", None) for one in gone]
        )

    async def _prune(self) -> None:
        """Now and then, as long as there is much of it each time."""
        now = self._clock.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY_SECONDS
            if await self._leads() and await self._outbox.prune(_PRUNED_AT_ONCE) == _PRUNED_AT_ONCE:
                self._prune_at = now


def _by_time(one: Outgoing) -> tuple[datetime, str]:
    assert one.event is not None  # noqa: S101 - for the type
    return one.event.booking.started_at, one.event_id


def _reason(answer: Answer) -> str:
    """For the log: nothing that the receiver wrote."""
    return str(answer.status) if answer.status is not None else answer.text


def _described(answer: Answer) -> str:
    """For the row, which admins see: with what the receiver wrote."""
    return f"{answer.status} {answer.text}".strip() if answer.status is not None else answer.text
