"""What uvicorn runs: `uvicorn api.main:app`. The only module that builds Settings when it is imported."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from api import logs
from api.app import create_app
from api.runtime import open_ports
from api.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.deps import LifespanState

_GARBAGE = (3_000, 10, 10)
"""Looked for less often than each 700 objects: a request makes hundreds, hardly one of them in a cycle.

At 10,000 and 20 what lies about took 7 MB more.
"""


@asynccontextmanager
async def _settled(settings: Settings) -> AsyncIterator[LifespanState]:
    """Opened ports, and all that is loaded by then out of the garbage collector's sight.

    They never die, and a full collection looked at each for 100 ms, in which no stream got a token.
    """
    async with open_ports(settings) as state:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        yield state


_SETTINGS = Settings()
logs.set_up(_SETTINGS)
app = create_app(_SETTINGS, _settled)
