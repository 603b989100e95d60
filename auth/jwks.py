"""An identity provider's public keys, fetched from its URL and remembered (RFC 7517).

A key that is known never waits for the network: the background asks for the set anew every few minutes
(`refresh_if_due`), and a set that came replaces the one before, so that a key its owner withdrew counts no
longer. An unknown key id makes one request fetch the set, and the others that are at it wait with it; this
happens once in half a minute at most, whatever strangers send. Where a fetch fails the old keys go on
serving, for as long as it takes, and a line in the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from auth import jws

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from auth.memory import Clock

MAX_ENTRIES = 100
_NEVER = float("-inf")

log = logging.getLogger("sluicegate.auth")


class FetchFailed(OSError):  # noqa: N818 - reads as what happened
    """The keys could not be fetched. The text goes into the log: it holds nothing of what was received."""


class KeySet:
    """The keys behind one URL, for the algorithms that are pinned for it.

    `fetch` returns the body behind a URL within a time of its own, or raises OSError or ValueError. Times are
    seconds of the clock's `monotonic`.
    """

    def __init__(
        self,
        url: str,
        fetch: Callable[[str], Awaitable[bytes]],
        algorithms: Iterable[str],
        clock: Clock,
        *,
        min_refresh_seconds: float = 30.0,
        refresh_seconds: float = 300.0,
    ) -> None:
        self._url = url
        self._name = url.partition("?")[0]  # for the log: what is behind it may be a credential
        self._fetch = fetch
        self._algorithms = tuple(algorithms)
        self._clock = clock
        self._min_refresh_seconds = min_refresh_seconds
        self._refresh_seconds = refresh_seconds
        self._keys: list[tuple[str | None, jws.VerificationKey]] = []
        self._lock = asyncio.Lock()
        self._begun_at = _NEVER  # the last fetch, however it ended
        self._fresh_at = _NEVER  # when the fetch began that brought these keys
        self._ended = 0

    async def find(self, kid: str | None, algorithm: str) -> jws.VerificationKey | None:
        """The key of that name for that algorithm; without a name, the only one for it; else None."""
        key = self._known(kid, algorithm)
        if key is None and (self._lock.locked() or self._may_fetch()):
            await self._update()
            key = self._known(kid, algorithm)
        return key

    async def refresh_if_due(self) -> None:
        """Fetch the keys if they are older than `refresh_seconds`. For a loop in the background."""
        if self._clock.monotonic() - self._fresh_at >= self._refresh_seconds and self._may_fetch():
            await self._update()

    def _known(self, kid: str | None, algorithm: str) -> jws.VerificationKey | None:
        fitting = [
            key for name, key in self._keys if key.algorithm == algorithm and (name == kid or kid is None)
        ]
        if kid is None and len(fitting) > 1:
            return None
        return fitting[0] if fitting else None

    def _may_fetch(self) -> bool:
        return self._clock.monotonic() - self._begun_at >= self._min_refresh_seconds

    async def _update(self) -> None:
        """Fetch the keys, or wait for the fetch that is under way.

        Where the request that fetches is cancelled, the next that waits takes over.
        """
        ended = self._ended
        async with self._lock:
            if self._ended != ended:
                return
            self._begun_at = self._clock.monotonic()
            await self._replace()
            self._ended += 1

    async def _replace(self) -> None:
        begun_at = self._begun_at
        try:
            keys = list(_keys_of(await self._fetch(self._url), self._algorithms))
        except (OSError, ValueError) as error:
            # Only what this package wrote itself: other texts may quote what was received.
            why = str(error) if isinstance(error, FetchFailed | NotAKeySet) else type(error).__name__
            log.warning("keys at %s not fetched, the old ones go on serving: %s", self._name, why)
            return
        if not keys:
            log.warning(
                "keys at %s: none of them can be used for %s", self._name, ", ".join(self._algorithms)
            )
        self._keys, self._fresh_at = keys, begun_at


class NotAKeySet(ValueError):  # noqa: N818 - reads as what happened
    """What was fetched is no JWK set. The text holds nothing of it."""


def _keys_of(body: bytes, algorithms: tuple[str, ...]) -> Iterator[tuple[str | None, jws.VerificationKey]]:
    """The usable keys of a JWK set, each once for every algorithm that it fits, with their names.

    RFC 7517, 5 has entries that are not understood ignored: that is what happens to broken and weak ones,
    and to those for other uses.
    """
    try:
        document = jws.load_json(body)
    except ValueError:
        raise NotAKeySet("what came is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise NotAKeySet("what came is not a JWK set")
    if len(entries) > MAX_ENTRIES:
        raise NotAKeySet(f"what came has more than {MAX_ENTRIES} keys")
    for entry in entries:
        if isinstance(entry, dict) and _is_for_signatures(entry):
            for algorithm in algorithms:
                if entry.get("alg", algorithm) == algorithm:
                    try:
                        yield entry.get("kid"), jws.key_of(entry, algorithm)
                    except ValueError:
                        continue


def _is_for_signatures(entry: dict[str, Any]) -> bool:
    """RFC 7517, 4.2, 4.3 and 4.5: what the entry says that it is for, and that its name can be one."""
    operations = entry.get("key_ops", ["verify"])
    return (
        entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and ("kid" not in entry or jws.is_printable(entry["kid"], jws.MAX_KID_CHARACTERS))
    )
