"""The clients of a proof: more of them than there is room for, each holding a stream whenever it gets one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.load import Line, dial, request_bytes

if TYPE_CHECKING:
    from scripts.load import Answer

_OK, _TOO_MANY, _UNAVAILABLE = 200, 429, 503
_ANSWER_SECONDS = 15.0
_OPENED_AT_ONCE = 64


@dataclass(frozen=True)
class Plan:
    """What happens. `pace_ms` is between two tokens of a stream, of which one has `tokens`, from and to."""

    workers: int = 4
    tenants: int = 20
    streams: int = 2000
    seconds: float = 60.0
    kills: int = 8
    pace_ms: int = 1000
    tokens: tuple[int, int] = (4, 24)
    leavers: float = 0.1  # the part of the streams whose clients leave in the middle
    queue: int = 0  # so many requests of a tenant wait for a slot in place of a 429
    retry_seconds: float = 1.0  # longer than this nobody stays away
    lease_seconds: float = 15.0
    tick_seconds: float = 1.0
    redis_timeout_seconds: float = 0.25
    seed: int = 1


@dataclass
class Tenant:
    """One of them, and what became of its requests."""

    id: str
    key: str
    cap: int
    clients: int
    label: str
    held: int = 0
    refused: int = 0
    unavailable: int = 0
    finished: int = 0
    left: int = 0
    cut: int = 0
    degraded: int = 0


class Crowd:
    """Clients that hold as many streams as they get."""

    def __init__(self, plan: Plan, url: str, tenants: list[Tenant]) -> None:
        self._plan = plan
        self._url = url
        self._tenants = tenants
        self._random = random.Random(plan.seed)  # noqa: S311 - a load
        self._tasks: list[asyncio.Task[None]] = []
        self._requests = {tenant.id: self._requests_of(tenant) for tenant in tenants}
        self.no_connection = 0
        self.strange: list[str] = []
        self.codes: Counter[str] = Counter()  # of 503s

    def _requests_of(self, tenant: Tenant) -> list[bytes]:
        least, most = self._plan.tokens
        return [
            request_bytes(
                self._url, tenant.key, label=tenant.label, tokens=tokens, pace_ms=self._plan.pace_ms
            )
            for tokens in range(least, most + 1)
        ]

    def start(self) -> None:
        """Everybody comes, within a moment."""
        for tenant in self._tenants:
            self._tasks += [asyncio.create_task(self._client(tenant)) for _ in range(tenant.clients)]

    async def stop(self) -> None:
        """Everybody leaves at once."""
        for task in self._tasks:
            task.cancel()
        for error in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(error, Exception):
                self.strange.append(f"a client: {error!r}")

    async def _client(self, tenant: Tenant) -> None:
        rng = self._random
        await asyncio.sleep(rng.uniform(0, min(5.0, self._plan.seconds / 5)))
        line: Line | None = None
        try:
            while True:
                if line is None or not line.open:
                    try:
                        line = await dial(self._url)
                    except OSError:
                        self.no_connection += 1
                        await asyncio.sleep(rng.uniform(0.1, 0.5))
                        continue
                await asyncio.sleep(await self._stream(tenant, line))
        finally:
            if line is not None:
                line.leave()

    async def _stream(self, tenant: Tenant, line: Line) -> float:
        """One request to its end; returns after how many seconds to come back."""
        rng = self._random
        least, most = self._plan.tokens
        leave_after = rng.randint(1, max(least, most // 2)) if rng.random() < self._plan.leavers else -1
        line.ask(rng.choice(self._requests[tenant.id]), leave_after=leave_after)
        assert line.begun is not None  # noqa: S101 - it was asked
        assert line.ended is not None  # noqa: S101 - the same
        began = (await line.begun).status == _OK
        tenant.held += began
        try:
            answer = await line.ended
        finally:
            tenant.held -= began
        return self._note(tenant, answer)

    def _note(self, tenant: Tenant, answer: Answer) -> float:
        tenant.degraded += answer.degraded
        patience = self._plan.retry_seconds * self._random.uniform(0.75, 1.25)
        if answer.status == _OK and (answer.finished or answer.left):
            tenant.finished += answer.finished
            tenant.left += answer.left and not answer.finished
            return 0.0
        if answer.status == _TOO_MANY:
            tenant.refused += 1
            return min(answer.retry_after, patience)
        if answer.status == _UNAVAILABLE:
            tenant.unavailable += 1
            self.codes[answer.code] += 1
            return min(answer.retry_after, patience)
        tenant.cut += 1
        if answer.status not in {0, _OK}:
            self.strange.append(f"status {answer.status}")
        return patience * self._random.random()


async def fill(plan: Plan, url: str, tenants: list[Tenant], lines: list[Line]) -> list[str]:
    """Open each tenant's whole cap, then one stream more; returns what went wrong."""
    turns, wrong = asyncio.Semaphore(_OPENED_AT_ONCE), []

    async def status(tenant: Tenant) -> str:
        request = request_bytes(url, tenant.key, label=tenant.label, tokens=4000, pace_ms=plan.pace_ms)
        async with turns:
            line = await dial(url)
            lines.append(line)
            line.ask(request)
            assert line.begun is not None  # noqa: S101 - it was asked
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answer = await line.begun
                    return f"{answer.status}{', degraded' if answer.degraded else ''}"
            return "no answer"

    for wanted, who in (
        ("200", [tenant for tenant in tenants for _ in range(tenant.cap)]),
        ("429", tenants if not plan.queue else []),
    ):
        got = await asyncio.gather(*(status(tenant) for tenant in who))
        wrong += [f"{t.label}: {s} for {wanted}" for t, s in zip(who, got, strict=True) if s != wanted]
    return wrong
