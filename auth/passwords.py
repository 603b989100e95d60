"""Passwords, hashed with argon2id by passlib (its maintained fork, libpass); the only file that imports it.

OWASP's second choice of parameters: 19 MiB, two passes, one lane. Hashing takes tens of milliseconds by
design, so it never runs on the event loop, one at a time, in a thread of low priority where the system has
such (Linux): it must take nothing from streams that run.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from passlib.hash import argon2

from auth.principal import SignInBusy

_argon2id = argon2.using(type="ID", memory_cost=19 * 1024, time_cost=2, parallelism=1)

_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$GIMQolSKkbL2Xmutde495w$+W6ssa63Bh4av2mMebKiB+tD1B1bfsMyoaJzctpzHnk"
"""A hash that nobody's password has, so that an unknown account costs the same work as a wrong password."""

_NICE = 10


def hash_password(password: str) -> str:
    """The argon2id hash to store. Blocks."""
    return str(_argon2id.hash(password))


def verify_password(password: str, stored: str | None) -> bool:
    """Whether `password` has the hash `stored`; equal work where there is no such account (None). Blocks."""
    matches = bool(_argon2id.verify(password, stored or _NOBODY))
    return matches and stored is not None


MAX_WAITING = 100
"""So many passwords may wait for their turn: some three seconds."""


class Hasher:
    """Compares passwords beside the event loop."""

    def __init__(self) -> None:
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "argon2", initializer=_stand_back)

    async def verify(self, password: str, stored: str | None) -> bool:
        """As `verify_password`, in its turn. Raises SignInBusy where too many wait."""
        if self._waiting >= MAX_WAITING:
            raise SignInBusy
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, verify_password, password, stored)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread; those who still wait are refused by the cancellation of their turn."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _stand_back() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except (AttributeError, OSError):  # priorities are per process there, and this one is not to be changed
        return
