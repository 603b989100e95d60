"""The spool's file: what was taken is on the disk, whoever dies or whatever is full; and it has one owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from api.adapters import spool_file
from api.adapters.spool_file import Spool, SpoolFull, orphans, path_of
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 1 << 20

APPENDS = """
import sys
from pathlib import Path
from api.adapters.spool_file import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30).make()
for number in range(1 << 30):
    spool.append([b"%d %s\\n" % (number, b"x" * (number % 977))])
    print(number, flush=True)
"""

FILLS_A_DISK = """
import resource, sys
from pathlib import Path
from api.adapters.spool_file import Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30).make()
for size in (3_000, 6_000, 3_000, 900, 900, 100):
    try:
        spool.append([b"x" * (size - 1) + b"\\n"])
        print("taken", size, spool.size, Path(sys.argv[1]).stat().st_size)
    except OSError as error:
        print(type(error).__name__, size, spool.size, Path(sys.argv[1]).stat().st_size)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a worker has its spool."""
    return path_of(tmp_path / "spool", "host:1:abc")


@contextmanager
def made(path: Path, max_bytes: int = MOST) -> Iterator[Spool]:
    """A new one, let go of at the end."""
    spool = Spool(path, max_bytes=max_bytes).make()
    try:
        yield spool
    finally:
        spool.close()


def left_by(path: Path, *lines: bytes) -> None:
    """A dead worker's spool."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(lines))


def everything(spool: Spool) -> list[bytes]:
    """All its lines."""
    lines, end = spool.read(0, MOST)
    assert end == spool.size
    return lines


@contextmanager
def running(program: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own."""
    command = [sys.executable, "-c", program, str(path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


# --- what was taken is there ------------------------------------------------------------------------


def test_what_was_taken_survives_sigkill(path: Path) -> None:
    """Every line whose append had returned, in order, and at most one more; all of them whole."""
    with running(APPENDS, path) as worker:
        assert worker.stdout is not None
        said = [int(worker.stdout.readline()) for _ in range(50)]
        worker.send_signal(signal.SIGKILL)
        said += [int(line) for line in worker.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    spool = Spool(path, max_bytes=MOST).take()
    lines = everything(spool)
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(len(numbers)))
    assert said[-1] <= numbers[-1] <= said[-1] + 1
    assert all(len(line.split(b" ")[1]) == number % 977 + 1 for number, line in enumerate(lines))
    spool.close()


def test_append_returns_when_the_disk_has_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines of one call are flushed once, after they were written; so are the file's name and its end."""
    flushed: list[tuple[Path, int]] = []
    flush = os.fsync

    def fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink()
        flushed.append((name, os.fstat(handle).st_size))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with made(path) as spool:
        assert [name for name, _ in flushed] == [path.parent]
        spool.append([b"one\n", b"two\n"])
        spool.append([b"three\n"])
        assert flushed[1:] == [(path, 8), (path, 14)]
        spool.clear()
        assert flushed[3:] == [(path, 0)]


@pytest.mark.parametrize("torn", [b"x", b"x" * 200_000], ids=["short", "long"])
@pytest.mark.parametrize("whole", [[b"one\n", b"two\n"], []], ids=["behind others", "alone"])
def test_a_torn_end_is_cut_off(path: Path, whole: list[bytes], torn: bytes) -> None:
    """Half a line that a crash left does not become part of the next one."""
    left_by(path, *whole, torn)
    spool = Spool(path, max_bytes=MOST).take()
    assert everything(spool) == whole
    spool.append([b"next\n"])
    assert everything(spool) == [*whole, b"next\n"]
    assert path.read_bytes() == b"".join([*whole, b"next\n"])
    spool.close()


def test_it_is_read_in_pieces_of_whole_lines(path: Path) -> None:
    """However small the pieces are, and however long a line: each comes once, whole and in order."""
    lines = [b"x" * (number * 37 % 101) + b"\n" for number in range(200)]
    with made(path) as spool:
        spool.append(lines)
        for most in (1, 40, 101, 4096):
            found, at = [], 0
            while at < spool.size:
                piece, at = spool.read(at, most)
                found += piece
            assert found == lines, most


def test_a_file_that_somebody_cut_is_read_to_its_end(path: Path) -> None:
    """Its owner does not wait for ever for lines that are not there any more."""
    with made(path) as spool:
        spool.append([b"one\n", b"two\n", b"three\n"])
        os.truncate(path, 6)
        lines, at = spool.read(0, MOST)
        assert lines == [b"one\n"]
        assert spool.read(at, MOST) == ([b"tw"], spool.size)


# --- it has an end ----------------------------------------------------------------------------------


def test_it_takes_as_many_bytes_as_it_may_and_not_one_more(path: Path) -> None:
    """What does not fit is refused as a whole; what fits later is taken."""
    with made(path, max_bytes=10) as spool:
        spool.append([b"1234\n"])
        with pytest.raises(SpoolFull):
            spool.append([b"1234\n", b"\n"])
        assert path.read_bytes() == b"1234\n"
        spool.append([b"1234\n"])
        with pytest.raises(SpoolFull):
            spool.append([b"\n"])
        assert (spool.size, path.stat().st_size) == (10, 10)
        spool.clear()
        spool.append([b"123456789\n"])
        assert everything(spool) == [b"123456789\n"]


def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    """What the disk did not take is refused, nothing of it stays, and what fits is taken afterwards."""
    with running(FILLS_A_DISK, path) as worker:
        out, _ = worker.communicate(timeout=20)
    assert out.decode().split("\n")[:-1] == [
        "taken 3000 3000 3000",
        "taken 6000 9000 9000",
        "OSError 3000 9000 9000",
        "taken 900 9900 9900",
        "OSError 900 9900 9900",
        "taken 100 10000 10000",
    ]
    spool = Spool(path, max_bytes=MOST).take()
    assert [len(line) for line in everything(spool)] == [3000, 6000, 900, 100]
    spool.close()


@pytest.mark.parametrize("broken", ["pwrite", "fsync"])
@pytest.mark.parametrize("takes_back", [True, False])
def test_what_the_disk_failed_to_take_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, takes_back: bool
) -> None:
    """Also where the half of it cannot be cut off: the next line stands where it would have stood."""
    truncate = os.ftruncate

    def fail(*_: object) -> int:
        raise OSError(5, "the disk is ill")

    def write_half(handle: int, data: bytes, at: int) -> int:
        os.lseek(handle, at, os.SEEK_SET)
        os.write(handle, data[: len(data) // 2])
        return fail()

    with made(path) as spool:
        spool.append([b"one\n"])
        with monkeypatch.context() as ill:
            ill.setattr(os, broken, write_half if broken == "pwrite" else fail)
            ill.setattr(os, "ftruncate", truncate if takes_back else fail)
            with pytest.raises(OSError, match="ill"):
                spool.append([b"refused and quite long\n"])
        assert everything(spool) == [b"one\n"]
        assert not takes_back or path.read_bytes() == b"one\n"
        spool.append([b"two\n"])
        assert everything(spool) == [b"one\n", b"two\n"]


# --- it has one owner -------------------------------------------------------------------------------


def test_nobody_takes_a_live_workers_spool(path: Path) -> None:
    """As long as its process lives no other has it, nor this one a second time; then whoever comes."""
    with running(APPENDS, path) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert list(orphans(path.parent, max_bytes=MOST)) == []
        with pytest.raises(BlockingIOError):
            Spool(path, max_bytes=MOST).take()
        worker.kill()
        worker.wait()
        [spool] = orphans(path.parent, max_bytes=MOST)
        assert everything(spool)[0].startswith(b"0")
        assert list(orphans(path.parent, max_bytes=MOST)) == []
        spool.close()


def test_an_orphan_is_taken_by_one_of_several(tmp_path: Path) -> None:
    """Many look at the same time: each line of each dead worker is replayed once, and nothing stays."""
    workers, takers = 40, 6
    for number in range(workers):
        left_by(path_of(tmp_path, f"host:{number}"), b"%d\n" % number)
    start = Barrier(takers)

    def take_over(_: int) -> list[bytes]:
        start.wait(10)
        found = []
        for spool in orphans(tmp_path, max_bytes=MOST):
            found += everything(spool)
            spool.clear()
            spool.close()
        return found

    with ThreadPoolExecutor(takers) as threads:
        found = [line for lines in threads.map(take_over, range(takers)) for line in lines]
    assert sorted(found, key=int) == [b"%d\n" % number for number in range(workers)]
    assert list(tmp_path.iterdir()) == []


def test_a_new_one_is_locked_before_it_can_be_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes a worker's spool for an orphan in the moment between its making and its locking."""
    lock, seen = spool_file.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        seen.append(list(path.parent.glob("*.spool")))
        lock(handle, how)

    monkeypatch.setattr(spool_file.fcntl, "flock", flock)
    with made(path):
        assert seen == [[]]
        assert list(path.parent.iterdir()) == [path]


def test_a_new_one_is_nobodys_old_one(path: Path) -> None:
    """Should two workers ever have one name, the later does not start, rather than empty the other's."""
    left_by(path, b"one\n")
    with pytest.raises(FileExistsError):
        Spool(path, max_bytes=MOST).make()
    assert path.read_bytes() == b"one\n"


def test_one_that_was_removed_meanwhile_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened just before its replayer removed it: whatever were written to it would be lost."""
    left_by(path, b"one\n")
    lock = spool_file.fcntl.flock

    def flock(handle: int, how: int) -> None:
        path.unlink()
        lock(handle, how)

    monkeypatch.setattr(spool_file.fcntl, "flock", flock)
    with pytest.raises(BlockingIOError):
        Spool(path, max_bytes=MOST).take()


def test_an_empty_one_is_removed_and_another_stays(path: Path) -> None:
    """A worker that leaves with nothing in its spool leaves no file; else it is there for the next one."""
    with made(path) as spool:
        spool.append([b"one\n"])
        spool.clear()
    assert list(path.parent.iterdir()) == []
    with made(path) as spool:
        spool.append([b"one\n"])
    assert path.read_bytes() == b"one\n"


def test_nobody_else_may_read_it(path: Path) -> None:
    """It holds tenants' data: directory and file are for this user alone, whatever the umask."""
    before = os.umask(0)
    try:
        with made(path):
            assert oct(path.parent.stat().st_mode & 0o777) == oct(0o700)
            assert oct(path.stat().st_mode & 0o777) == oct(0o600)
    finally:
        os.umask(before)


@pytest.mark.parametrize("worker", ["host:1:ab", "../../etc/passwd", "a b\n/\x00", "ü.example.com:7"])
def test_a_workers_name_is_no_path(tmp_path: Path, worker: str) -> None:
    """Whatever a host is called, its spool lies in the directory, where it is found again."""
    path = path_of(tmp_path, worker)
    assert path.parent == tmp_path
    with made(path) as spool:
        assert list(tmp_path.glob("*.spool")) == [spool.path]
