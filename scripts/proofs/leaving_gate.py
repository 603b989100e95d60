"""The gate of `scripts/prove leaving`: the production app in its own process, with a probe in its event loop.

It does what it reads on its standard input, a word a line, and answers each with a line of JSON: `begin`
notes lags from here on, `lags` tells of those since, `settled` waits until no stream is worked on, `count`
holds the ledger against another tokeniser.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.core.dialects.openai_chat import read
from api.core.sse import Framer
from tests.core.oracle import oracle
from tests.support.gates import serving, settings_of

if TYPE_CHECKING:
    from api.ports import Upstream, UpstreamAnswer
    from tests.support.gates import InProcess

_PROBE_SECONDS = 0.001
_MOST_LAGS = 5


@dataclass(frozen=True)
class Lags:
    """How late the probe came, in milliseconds; of the latest also the loop's own CPU time meanwhile."""

    samples: int
    median_ms: float
    p99_ms: float
    max_ms: float
    over_5_ms: int
    over_20_ms: int
    most: list[dict[str, float]]


class Probe:
    """A task that asks to be woken every millisecond, and notes by how much it is late."""

    def __init__(self) -> None:
        self._lags: list[tuple[float, float, float]] = []

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due, cpu = loop.time() + _PROBE_SECONDS, time.thread_time()
            await asyncio.sleep(_PROBE_SECONDS)
            now = loop.time()
            self._lags.append((now - due, time.thread_time() - cpu, now))

    def begin(self) -> None:
        """Forget what was."""
        self._lags = []

    def lags(self) -> Lags:
        """Since `begin`."""
        found = sorted(self._lags, reverse=True)
        late = [lag * 1000 for lag, _, _ in found]
        most = [
            {"ms": round(lag * 1000, 1), "cpu_ms": round(cpu * 1000, 1), "at": round(at, 3)}
            for lag, cpu, at in found[:_MOST_LAGS]
        ]
        return Lags(
            samples=len(late),
            median_ms=round(late[len(late) // 2], 2),
            p99_ms=round(late[len(late) // 100], 2),
            max_ms=round(late[0], 2),
            over_5_ms=sum(one > 5 for one in late),  # noqa: PLR2004 - as it says
            over_20_ms=sum(one > 20 for one in late),  # noqa: PLR2004 - the same
            most=most,
        )


@dataclass
class Listened:
    """A provider whose answers are kept, byte for byte, as the gate reads them; by the model asked for."""

    upstream: Upstream
    parts: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its own."""
        return self.upstream.name

    async def open(self, body: dict[str, Any], *dialect: str, **options: Any) -> UpstreamAnswer:
        """The provider's answer."""
        return _Kept(
            await self.upstream.open(body, *dialect, **options), self.parts.setdefault(body["model"], [])
        )

    async def prepare(self, dialect: str) -> object:
        """The provider's."""
        return await self.upstream.prepare(dialect)

    async def models(self) -> bytes:
        """The provider's."""
        return await self.upstream.models()

    async def close(self) -> None:
        """The provider's."""
        await self.upstream.close()


@dataclass
class _Kept:
    answer: UpstreamAnswer
    parts: list[bytes]

    async def read(self) -> bytes:
        data = await self.answer.read()
        self.parts.append(data)
        return data

    async def finish(self) -> None:
        await self.answer.finish()

    async def close(self) -> None:
        await self.answer.close()


def text_of(parts: list[bytes]) -> str:
    """The text of the whole events in these bytes."""
    framer = Framer(1 << 26)
    return "".join(read(event).content for part in parts for event in framer.feed(part))


async def counted(app: InProcess, listened: Listened) -> dict[str, Any]:
    """Each event beside what another tokeniser makes of all that was read for it."""
    count = oracle("o200k_base")
    events = [
        {
            "ended": event.ended,
            "certainty": event.usage.certainty,
            "ledger": event.usage.output_tokens,
            "counted": count(text_of(listened.parts[event.booking.model])),
        }
        for event in await app.events()
    ]
    return {"events": events}


async def _serve(directory: Path, upstream: str, database: str, redis: str) -> None:
    settings = settings_of(
        directory, openai_base_url=upstream, database_url=database, redis_url=redis, tick_seconds=1
    )
    loop = asyncio.get_running_loop()
    async with serving(settings, max_streams=1000) as app:
        provider = app.gate.providers.fixed["openai"]
        listened = provider.upstream = Listened(provider.upstream)
        probe = Probe()
        probing = asyncio.create_task(probe.run())
        gc.collect()
        gc.freeze()  # as api.main does
        print(json.dumps({"url": app.url, "key": app.key}), flush=True)
        while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            told: dict[str, Any] = {}
            if word == "begin":
                probe.begin()
            elif word == "lags":
                told = asdict(probe.lags())
            elif word == "settled":
                await app.settled()
            elif word == "count":
                told = await counted(app, listened)
            print(json.dumps(told), flush=True)
        probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probing


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("directory", "upstream", "database", "redis"):
        parser.add_argument(f"--{name}", required=True)
    asked = parser.parse_args()
    asyncio.run(_serve(Path(asked.directory), asked.upstream, asked.database, asked.redis))


if __name__ == "__main__":
    main()
