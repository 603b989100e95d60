"""What the workers of a host have counted, in a file for each: whichever worker is asked can tell of all.

One directory for the workers of one server process, by its process id. A dead worker leaves its file:
counters must not fall. Directories of servers that are gone are removed by whoever starts next.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import msgspec

from api.core.numbers import Snapshot

if TYPE_CHECKING:
    from pathlib import Path


class NumbersFiles:
    """The files of the server `process_id`, of which `worker` writes one."""

    def __init__(self, directory: Path, process_id: int, worker: str) -> None:
        self._directory = directory / str(process_id)
        _sweep(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._directory / f"{worker.replace('/', '_')}.json"

    def write(self, snapshot: Snapshot) -> None:
        """Replace this worker's. Raises OSError."""
        partial = self._path.with_suffix(".part")
        partial.write_bytes(msgspec.json.encode(snapshot))
        partial.replace(self._path)

    def others(self) -> list[Snapshot]:
        """What the other workers last said; a file that cannot be read says nothing."""
        found = []
        for path in self._directory.glob("*.json"):
            if path != self._path:
                try:
                    found.append(msgspec.json.decode(path.read_bytes(), type=Snapshot))
                except (OSError, msgspec.MsgspecError):
                    continue
        return found


def _sweep(directory: Path) -> None:
    for old in directory.glob("[0-9]*"):
        if not _lives(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
