"""Clients that come back at once after each refusal, in a process of their own.

On standard input a line of JSON says whom to flood; then `go` and `stop`, again and again. Each is answered
by a line of JSON: `stop` by what the flood has done, and by the CPU that it cost this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from scripts.load import Line, dial

_TOO_MANY = 429


class Flood:
    """So many connections, each with a request on its way while the flood goes on."""

    def __init__(self, url: str, request: bytes, pause_seconds: float) -> None:
        self.url = url
        self.request = request
        self.pause_seconds = pause_seconds
        self.on = False
        self.refused = self.lost = self.degraded = 0
        self.other: Counter[str] = Counter()
        self._lines: list[Hammer] = []
        self._dialling: set[asyncio.Task[None]] = set()

    async def dial(self, count: int) -> None:
        """Have so many connections; the gate closes those that were idle."""
        self._lines = [line for line in self._lines if line.open]
        while len(self._lines) < count:
            await self._dial()

    async def _dial(self) -> None:
        line = await dial(self.url, lambda: Hammer(self))
        assert isinstance(line, Hammer)  # noqa: S101 - made a line ago
        self._lines.append(line)
        line.again()

    def go(self) -> None:
        """Everybody asks."""
        self.on = True
        self.refused = self.lost = self.degraded = 0
        self.other.clear()
        for line in self._lines:
            line.again()

    async def stop(self) -> None:
        """Nobody asks again; returns when all answers are there."""
        self.on = False
        while any(line.busy for line in self._lines):  # noqa: ASYNC110 - many events, and no hurry
            await asyncio.sleep(0.01)

    def note(self, line: Hammer) -> None:
        """An answer is there, or its connection is gone."""
        answer = line.answer
        self.degraded += answer.degraded
        if answer.status == _TOO_MANY:
            self.refused += 1
        else:
            self.other[f"flood: {answer.status} {answer.code}".strip()] += 1
        if line.open:
            line.later(self.pause_seconds)
            return
        self.lost += 1
        self._lines.remove(line)
        task = asyncio.create_task(self._dial())
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)


class Hammer(Line):
    """One connection of a flood."""

    def __init__(self, flood: Flood) -> None:
        super().__init__()
        self._flood = flood

    def over(self) -> None:
        """The answer is there."""
        self._flood.note(self)

    def later(self, seconds: float) -> None:
        """Ask again, after so long."""
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.again)
        else:
            self.again()

    def again(self) -> None:
        """Ask, while the flood goes on."""
        if self._flood.on and self.open and not self.busy:
            self.send(self._flood.request)


async def _serve() -> None:
    told = json.loads(sys.stdin.readline())
    flood = Flood(told["url"], told["request"].encode(), told["pause_seconds"])
    await flood.dial(told["clients"])
    _say(ready=True)
    cpu = 0.0
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "go":
            await flood.dial(told["clients"])
            cpu = time.process_time()
            flood.go()
            _say(on=True)
        else:
            await flood.stop()
            _say(
                refused=flood.refused,
                degraded=flood.degraded,
                lost=flood.lost,
                other=flood.other,
                cpu_seconds=time.process_time() - cpu,
            )


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
