"""What it costs to know who is calling: CPU microseconds of one core, and look-ups, for each credential.

Warm: the same credential again, as nearly all calls are. First: a token that this worker has not seen yet,
whose signature has to be checked. The yardstick is one SHA-256 of 200 bytes in the same run, since machines
differ and hours do too.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk, jwt

from auth import keys
from auth.authenticator import Authenticator
from auth.door import Door
from auth.issuers import IssuerConfig, Issuers
from auth.memory import Memory
from auth.principal import TENANT_SCOPES, Scope, StoredKey, StoredTenant
from auth.tokens import TokenSigner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from auth.principal import Change, StoredUser

SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # noqa: S105 - of nothing but this
TENANT = StoredTenant("tn_1", active=True, max_streams=20)


class Clock:
    """The machine's clocks."""

    def unix(self) -> float:
        """UTC seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds."""
        return time.monotonic()


class Store:
    """One key and its tenant; counts how often it is asked."""

    def __init__(self, key: keys.ApiKey) -> None:
        self.asked = 0
        self._key = StoredKey(key.id, TENANT, key.sha256, TENANT_SCOPES)

    async def find_key(self, _key_id: str) -> StoredKey | None:
        """The key."""
        self.asked += 1
        return self._key

    async def find_tenant(self, _name: str) -> StoredTenant | None:
        """The tenant."""
        self.asked += 1
        return TENANT

    async def find_user(self, _email: str) -> StoredUser | None:
        """Nobody."""
        self.asked += 1
        return None

    async def revoked_tokens(self) -> list[str]:
        """None."""
        return []

    async def changes(self, _after: int | None, _gaps: Sequence[int] = ()) -> list[Change]:
        """None."""
        return []


class Bench:
    """An authenticator with a key, a bought token, and tokens of two identity providers."""

    def __init__(self) -> None:
        self.key = keys.mint()
        self.store, clock = Store(self.key), Clock()
        self.memory = Memory(self.store, clock, trust_seconds=float("inf"))
        self._signer = TokenSigner(SECRET)
        private: dict[str, Any] = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
        }
        self._signing = {name: jwk.construct(key, name) for name, key in private.items()}
        configs = [self._config(algorithm, key) for algorithm, key in private.items()]
        issuers = Issuers(configs, _no_fetch, clock)
        self.authenticator = Authenticator(self.memory, self._signer, issuers, Door(clock), clock)

    def _config(self, algorithm: str, private: Any) -> IssuerConfig:
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return IssuerConfig(
            issuer=f"https://{algorithm}.example",
            audience="gate",
            public_key=public.decode(),
            algorithms=[algorithm],
        )

    def bought(self, number: int) -> str:
        """A token that the key bought."""
        scopes = frozenset({Scope.CHAT})
        return self._signer.sign(
            now=time.time(),
            ttl_seconds=3600,
            scopes=scopes,
            key_id=self.key.id,
            end_user=f"user {number}",
        ).text

    def foreign(self, algorithm: str, number: int) -> str:
        """A token of an identity provider."""
        now = int(time.time())
        claims = {
            "iss": f"https://{algorithm}.example",
            "aud": "gate",
            "sub": f"user {number}",
            "tenant": "tn_1",
            "scope": "chat",
            "iat": now,
            "exp": now + 3600,
        }
        return str(jwt.encode(claims, self._signing[algorithm], algorithm=algorithm))


async def _no_fetch(url: str) -> bytes:
    raise OSError(url)


async def _yardstick(count: int) -> float:
    data = bytes(200)
    begun = time.process_time()
    for _ in range(count):
        hashlib.sha256(data).digest()
    return (time.process_time() - begun) / count * 1e6


async def _calls(bench: Bench, credentials: list[str]) -> float:
    """CPU microseconds of one call."""
    principal = bench.authenticator.principal
    begun = time.process_time()
    for credential in credentials:
        await principal(credential, "127.0.0.1")
    return (time.process_time() - begun) / len(credentials) * 1e6


async def measure(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Rows by name: median, least and most of the rounds in microseconds, ratio, look-ups for each call."""
    bench = Bench()
    makers: dict[str, Callable[[int], str]] = {
        "API key": lambda _: bench.key.text,
        "bought token, HS256": bench.bought,
        "identity provider, RS256": lambda n: bench.foreign("RS256", n),
        "identity provider, ES256": lambda n: bench.foreign("ES256", n),
    }
    few = max(count // 20, 1)
    work: dict[str, Callable[[int], Awaitable[float]]] = {"SHA-256 of 200 bytes": lambda _: _yardstick(count)}
    for name, make in makers.items():
        same = make(0)
        await bench.authenticator.principal(same, "127.0.0.1")
        work[f"{name}, warm"] = lambda _, same=same: _calls(bench, [same] * count)
        if make is not makers["API key"]:
            work[f"{name}, first"] = lambda turn, make=make: _calls(
                bench, [make(1 + turn * few + number) for number in range(few)]
            )
    taken: dict[str, list[float]] = {name: [] for name in work}
    asked = dict.fromkeys(work, 0)
    for turn in range(rounds):
        for name, run in work.items():
            before = bench.store.asked
            taken[name].append(await run(turn))
            asked[name] += bench.store.asked - before
    yardstick = statistics.median(taken["SHA-256 of 200 bytes"])
    return {
        name: {
            "median_us": statistics.median(times),
            "least_us": min(times),
            "most_us": max(times),
            "ratio": statistics.median(times) / yardstick,
            "lookups": asked[name],
        }
        for name, times in taken.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench auth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000, help="calls in each round")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = asyncio.run(measure(asked.rounds, asked.count))
    if asked.json:
        print(json.dumps(rows))
        return
    print(f"{'CPU us per call':34}{'median':>8}{'least':>8}{'most':>8}{'ratio':>8}{'look-ups':>10}")
    for name, row in rows.items():
        print(
            f"{name:34}{row['median_us']:8.1f}{row['least_us']:8.1f}{row['most_us']:8.1f}"
            f"{row['ratio']:8.1f}{row['lookups']:10}"
        )


if __name__ == "__main__":
    main()
