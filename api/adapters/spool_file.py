"""The spool: a file on this host to which the ledger's writes go while the database is away.

What `append` has returned from is on the disk (fsync). A worker has a file of its own, locked as long as it
lives; a file that nobody has locked is a dead worker's, and whoever takes it replays it. All methods block.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SUFFIX = ".spool"


class SpoolFull(Exception):  # noqa: N818 - reads as what happened
    """It has as many bytes as it may."""


class Spool:
    """One file. `size` is its bytes, all of them whole lines."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.size = 0
        self._file = -1

    def make(self) -> Self:
        """A new one, locked before anybody can find it. Raises FileExistsError where one is there."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.exists():
            raise FileExistsError(self.path)
        born = self.path.with_suffix(".new")
        self._lock(born, os.O_CREAT | os.O_TRUNC)
        born.rename(self.path)
        _sync_directory(self.path.parent)
        return self

    def take(self) -> Self:
        """One that is there. Raises BlockingIOError where another has it, OSError where it is gone."""
        self._lock(self.path)
        if os.fstat(self._file).st_nlink == 0:  # whoever had it has replayed and removed it meanwhile
            os.close(self._file)
            raise BlockingIOError
        self._cut_torn_end()
        return self

    def _lock(self, path: Path, flags: int = 0) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise

    def append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines; they are on the disk when this returns. Raises SpoolFull, OSError."""
        data = b"".join(lines)
        if self.size + len(data) > self.max_bytes:
            raise SpoolFull
        try:
            written = 0
            while written < len(data):
                # There, and not at the file's end: half a line may stand there that could not be taken back.
                written += os.pwrite(self._file, data[written:], self.size + written)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.size)  # a full disk may have taken half a line
            raise
        self.size += len(data)

    def read(self, start: int, max_bytes: int) -> tuple[list[bytes], int]:
        """Whole lines from byte `start` on, about so many bytes of them, and where the next ones begin."""
        wanted = max_bytes
        while True:
            data = os.pread(self._file, min(wanted, self.size - start), start)
            end = data.rfind(b"\n") + 1
            if end:
                return data[:end].splitlines(keepends=True), start + end
            if len(data) < wanted:  # no line ends here any more: somebody else wrote to it
                return [data] if data else [], self.size
            wanted *= 2  # one line is longer than that

    def clear(self) -> None:
        """All of it is on the ledger."""
        os.ftruncate(self._file, 0)
        os.fsync(self._file)
        self.size = 0

    def close(self) -> None:
        """Let go of it; an empty one is removed."""
        if self._file >= 0:
            if self.size == 0:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def _cut_torn_end(self) -> None:
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - 65536)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._file, end)
        self.size = end


def orphans(directory: Path, *, max_bytes: int) -> Iterator[Spool]:
    """The spools of dead workers, opened one after the other; whoever takes one closes it."""
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            yield Spool(path, max_bytes=max_bytes).take()
        except OSError:  # a live worker's, or somebody else was faster
            continue


def path_of(directory: Path, worker: str) -> Path:
    """Where a worker has its spool."""
    return directory / ("".join(c if c.isalnum() or c in "-." else "_" for c in worker) + _SUFFIX)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
