"""An identity provider's keys: fetched seldom, never waited for when known, and gone when withdrawn."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from auth import jws
from auth.jwks import FetchFailed, KeySet
from auth.principal import NotAuthenticated
from tests.auth.support import NOW, HandClock
from tests.support.openid import KeyRing, SigningKey, base64url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

URL = "https://id.example/jwks.json?key=SENT-BY-US"
ES, RS = SigningKey("es", "ES256"), SigningKey("rs", "RS256")


class Provider(KeyRing):
    """A key ring behind a `fetch`, which can break and which waits while `open` is not set."""

    def __init__(self) -> None:
        super().__init__(algorithm="ES256")
        self.clock = HandClock()
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.breaks: BaseException | None = None
        self.body: bytes | None = None
        self.key_set = KeySet(URL, self.fetch, ["ES256", "RS256"], self.clock)

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        body = self.document() if self.body is None else self.body
        await self.open.wait()
        if self.breaks is not None:
            raise self.breaks
        return body

    async def knows(self, kid: str | None = None, algorithm: str = "ES256") -> bool:
        return await self.key_set.find(kid or self.signs, algorithm) is not None

    async def accepts(self, token: str) -> bool:
        """Whether the token's own key is found, and has signed it."""
        peeked = jws.peek(token)
        key = await self.key_set.find(peeked.kid, peeked.algorithm)
        try:
            return key is not None and bool(jws.verify(token, key))
        except NotAuthenticated:
            return False


@pytest.fixture
def provider() -> Provider:
    return Provider()


@asynccontextmanager
async def hanging(provider: Provider, *waiting: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Start these calls, and go on once the fetch of one of them hangs; they are over at the end."""
    provider.open.clear()
    before = len(provider.asked)
    tasks = [asyncio.create_task(call) for call in waiting]
    while len(provider.asked) == before:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    yield tasks
    provider.open.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_known_key_is_fetched_once(provider):
    """The first token brings the set; all that follow do no I/O, however old it is."""
    for _ in range(100):
        assert await provider.accepts(provider.sign(provider.claims(NOW)))
        provider.clock.seconds += 3600
    assert provider.asked == [URL]


async def test_an_unknown_key_fetches_once_in_half_a_minute(provider):
    """A flood of invented ids reaches the provider twice a minute, and a new key is found by then."""
    for second in range(90):
        provider.clock.seconds = second
        for number in range(20):
            assert not await provider.knows(f"invented-{second}-{number}")
    assert len(provider.asked) == 3
    new = provider.rotate("ES256")
    assert not await provider.knows(new)
    provider.clock.seconds = 90
    assert await provider.knows(new)


async def test_a_fetch_that_fails_counts(provider, caplog):
    """A provider that is down is asked no oftener than one that is up, and one line says so each time."""
    provider.breaks = FetchFailed("status 503")
    for second in range(60):
        provider.clock.seconds = second
        assert not await provider.knows()
    assert len(provider.asked) == len(caplog.records) == 2
    assert {record.name for record in caplog.records} == {"sluicegate.auth"}
    assert caplog.messages[0].startswith("keys at https://id.example/jwks.json not fetched")
    assert caplog.messages[0].endswith(": status 503")
    provider.breaks = None
    provider.clock.seconds = 60
    assert await provider.knows()


async def test_those_who_wait_share_one_fetch(provider):
    """A hundred requests with the new key at one time: one fetch, and all of them are let in."""
    calls = [provider.knows() for _ in range(100)]
    async with hanging(provider, *calls) as tasks:
        assert not any(task.done() for task in tasks)
    assert all(task.result() for task in tasks)
    assert len(provider.asked) == 1


async def test_those_who_wait_share_one_failure(provider, caplog):
    """They do not try in turn."""
    provider.breaks = TimeoutError()
    async with hanging(provider, *(provider.knows() for _ in range(100))) as tasks:
        pass
    assert not any(task.result() for task in tasks)
    assert len(provider.asked) == len(caplog.records) == 1


async def test_a_known_key_never_waits(provider):
    """Neither for a stranger's fetch nor for the background's, even if they never end."""
    assert await provider.knows()
    provider.clock.seconds = 300
    async with hanging(provider, provider.key_set.refresh_if_due(), provider.knows("unknown")) as tasks:
        assert await provider.knows()
        assert not any(task.done() for task in tasks)


async def test_a_request_that_is_given_up_hands_its_fetch_on(provider):
    """Who waits beside it is not refused for it: the next one fetches."""
    async with hanging(provider, provider.knows(), provider.knows()) as (first, second):
        first.cancel()
        while len(provider.asked) < 2:
            await asyncio.sleep(0)
        assert not second.done()
    assert first.cancelled()
    assert second.result()


async def test_a_provider_that_is_down_leaves_the_keys(provider, caplog):
    """For as long as it takes: whoever has a good token goes on."""
    token = provider.sign(provider.claims(NOW))
    assert await provider.accepts(token)
    provider.breaks = ConnectionError("refused")
    for _ in range(100):
        provider.clock.seconds += 600
        await provider.key_set.refresh_if_due()
        assert await provider.accepts(token)
    assert len(provider.asked) == 101
    assert len(caplog.records) == 100


async def test_the_background_tries_no_oftener_than_strangers_make_it(provider):
    """However often its loop comes by, a provider that is down is asked twice a minute."""
    provider.breaks = ConnectionError("refused")
    for second in range(90):
        provider.clock.seconds = second
        await provider.key_set.refresh_if_due()
        assert not await provider.knows()
    assert len(provider.asked) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>SENT-BY-THEM</html>",
        b"\xff\xfe SENT-BY-THEM",
        b"[]",
        b'{"error": "SENT-BY-THEM"}',
        b'{"keys": {"SENT-BY-THEM": 1}}',
        b'{"keys": null}',
        b'{"keys": [], "keys": []}',
        b'{"keys": [NaN]}',
        b'{"keys": [' + b"9" * 5000 + b"]}",
        b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        json.dumps({"keys": [ES.jwk()] * 101}).encode(),
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
async def test_what_is_no_key_set_changes_nothing(provider, caplog, body):
    """The keys stay, one line says what is wrong, and nothing that was sent stands in the log."""
    caplog.set_level(logging.DEBUG)
    assert await provider.knows()
    provider.body = body
    provider.clock.seconds = 300
    await provider.key_set.refresh_if_due()
    assert await provider.knows()
    assert len(provider.asked) == 2
    assert len(caplog.records) == 1
    assert "SENT-BY-THEM" not in caplog.text


@pytest.mark.parametrize("error", [OSError, ValueError, TimeoutError, ConnectionResetError])
async def test_the_log_quotes_nobody(provider, caplog, error):
    """The text of an error may hold what was received; its kind is enough."""
    provider.breaks = error("SENT-BY-THEM")
    assert not await provider.knows()
    assert error.__name__ in caplog.text
    assert "SENT-BY" not in caplog.text
    assert caplog.records[0].exc_info is None


async def test_a_withdrawn_key_counts_no_longer(provider):
    """From the next refresh on, which comes after five minutes: the key that was stolen opens nothing."""
    stolen = provider.signs
    token = provider.sign(provider.claims(NOW))
    assert await provider.accepts(token)
    provider.rotate("ES256")
    provider.withdraw(stolen)
    provider.clock.seconds = 299
    await provider.key_set.refresh_if_due()
    assert len(provider.asked) == 1
    provider.clock.seconds = 300
    await provider.key_set.refresh_if_due()
    assert not await provider.accepts(token)
    assert await provider.accepts(provider.sign(provider.claims(NOW)))
    assert len(provider.asked) == 2


async def test_a_provider_may_withdraw_all(provider, caplog):
    """An empty set is a set: nobody is let in by what it no longer has, and the log says so."""
    assert await provider.knows()
    provider.body = b'{"keys": []}'
    provider.clock.seconds = 300
    await provider.key_set.refresh_if_due()
    assert not await provider.knows()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_age_of_a_set_counts_from_the_question(provider):
    """What took four minutes to come is refreshed a minute later."""
    async with hanging(provider, provider.knows()):
        provider.clock.seconds = 240
    provider.clock.seconds = 299
    await provider.key_set.refresh_if_due()
    assert len(provider.asked) == 1
    provider.clock.seconds = 300
    await provider.key_set.refresh_if_due()
    assert len(provider.asked) == 2


async def test_no_good_token_is_refused_while_the_provider_rotates(provider):
    """Three rotations with the next key published ahead, requests all the time, old tokens until they end."""
    provider.key_set = KeySet(URL, provider.fetch, ["ES256"], provider.clock)
    live: list[tuple[float, str]] = []
    rotations = {400: "announce", 800: "rotate", 1400: "withdraw"}
    for second in range(0, 6000, 5):
        provider.clock.seconds = second
        step = rotations.get(second % 2000)
        if step == "announce":
            before = provider.signs
            provider.announce("ES256")
        elif step == "rotate":
            provider.rotate()
        elif step == "withdraw":
            provider.withdraw(before)
        await provider.key_set.refresh_if_due()
        live = [(until, token) for until, token in live if until > second]
        if second % 50 == 0:
            live.append((second + 500, provider.sign(provider.claims(NOW, iat=second))))
        assert all([await provider.accepts(token) for _, token in live]), second
    assert len(provider.keys) == 4
    assert len(provider.asked) == 20


async def test_a_rotation_without_notice_costs_half_a_minute_at_most(provider):
    """The first token of the new key makes the gate ask."""
    assert await provider.knows()
    provider.rotate("ES256")
    provider.clock.seconds = 30
    assert await provider.accepts(provider.sign(provider.claims(NOW)))
    assert len(provider.asked) == 2


def rsa_entry(bits: int, exponent: int = 65537) -> dict[str, Any]:
    """An RSA key that need not be one: nobody can tell without its factors."""
    modulus = (1 << (bits - 1)) | 1
    return {
        "kty": "RSA",
        "kid": "rs",
        "n": base64url(modulus.to_bytes((bits + 7) // 8, "big")),
        "e": base64url(exponent.to_bytes(9, "big").lstrip(b"\0")),
    }


USABLE = {
    "EC": (ES.jwk(), "es", "ES256"),
    "without a use": (ES.jwk(use=None), "es", "ES256"),
    "without an alg": (ES.jwk(alg=None), "es", "ES256"),
    "key_ops verify": (ES.jwk(use=None, key_ops=["verify"]), "es", "ES256"),
    "members that mean nothing to us": (ES.jwk(x5u="https://evil.example", x5t="x"), "es", "ES256"),
    "RSA": (RS.jwk(), "rs", "RS256"),
    "RSA, 2048 bits": (rsa_entry(2048), "rs", "RS256"),
}
UNUSABLE = {
    "no object": "es",
    "for encryption": ES.jwk(use="enc"),
    "use null": ES.jwk() | {"use": None},
    "key_ops sign": ES.jwk(key_ops=["sign"]),
    "key_ops is text": ES.jwk(key_ops="verify"),
    "alg of another kind": ES.jwk(alg="RS256"),
    "alg that is not pinned": ES.jwk(alg="ES384"),
    "alg none": ES.jwk(alg="none"),
    "alg HS256": ES.jwk(alg="HS256"),
    "no kty": ES.jwk(kty=None),
    "kty of another kind": ES.jwk(kty="RSA"),
    "kty is a list": ES.jwk(kty=["EC"]),
    "oct": {"kty": "oct", "kid": "es", "k": base64url(b"s" * 32)},
    "OKP": {"kty": "OKP", "kid": "es", "crv": "Ed25519", "x": base64url(b"s" * 32)},
    "crv unknown": ES.jwk(crv="secp256k1"),
    "crv of another size": ES.jwk(crv="P-384"),
    "crv is a list": ES.jwk(crv=["P-256"]),
    "no x": ES.jwk(x=None),
    "x with padding": ES.jwk(x=ES.jwk()["x"] + "="),
    "x is a number": ES.jwk(x=1),
    "not on the curve": ES.jwk(y=ES.jwk()["x"]),
    "a private key": ES.jwk(d=base64url(b"d" * 32)),
    "a curve that is not pinned": SigningKey("es", "ES384").jwk(),
    "kid is a number": ES.jwk(kid=7),
    "kid is too long": ES.jwk(kid="k" * 257),
    "kid is not printable": ES.jwk(kid="es\n"),
}
WEAK = {
    "2047 bits": rsa_entry(2047),
    "1024 bits": rsa_entry(1024),
    "too long to check": rsa_entry(8193),
    "absurd": rsa_entry(400_000),
    "exponent 1": rsa_entry(2048, 1),
    "exponent 2": rsa_entry(2048, 2),
    "exponent too long": rsa_entry(2048, 2**64 + 1),
    "no modulus": {"kty": "RSA", "kid": "rs", "e": "AQAB"},
}


@pytest.mark.parametrize("name", USABLE)
async def test_a_usable_key_is_found(provider, name):
    """By its id and its algorithm, and for no other."""
    jwk, kid, algorithm = USABLE[name]
    provider.body = json.dumps({"keys": ["junk", jwk, {"kty": "junk"}]}).encode()
    assert await provider.knows(kid, algorithm)
    assert not await provider.knows(kid, {"ES256": "RS256", "RS256": "ES256"}[algorithm])
    assert not await provider.knows(kid, "HS256")
    assert not await provider.knows(kid, "none")


@pytest.mark.parametrize("name", UNUSABLE | WEAK)
async def test_an_unusable_key_is_passed_over(provider, name):
    """And does not take the good ones with it."""
    provider.body = json.dumps({"keys": [(UNUSABLE | WEAK)[name], ES.jwk(kid="good")]}).encode()
    assert await provider.knows("good")
    assert len(provider.key_set._keys) == 1


async def test_a_key_without_an_alg_serves_each_pinned_algorithm_of_its_kind(provider):
    """And a token is checked with the one that it names."""
    provider.body = json.dumps({"keys": [RS.jwk(alg=None)]}).encode()
    provider.key_set = KeySet(URL, provider.fetch, ["RS256", "RS512"], provider.clock)
    for algorithm in ("RS256", "RS512"):
        key = await provider.key_set.find("rs", algorithm)
        assert key is not None
        assert key.algorithm == algorithm
    assert await provider.key_set.find("rs", "RS384") is None


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ([ES], True),
        ([ES, RS], True),
        ([ES, SigningKey("other", "ES256")], False),
        ([RS], False),
        ([], False),
    ],
)
async def test_a_token_without_a_kid_needs_the_only_key(provider, keys, found):
    """One key for its algorithm leaves no choice; where there is one, none is tried."""
    provider.body = json.dumps({"keys": [key.jwk() for key in keys]}).encode()
    assert (await provider.key_set.find(None, "ES256") is not None) == found


async def test_a_key_without_a_kid_is_nobodys_namesake(provider):
    """It serves tokens without a kid alone."""
    provider.body = json.dumps({"keys": [ES.jwk(kid=None)]}).encode()
    assert await provider.key_set.find(None, "ES256") is not None
    assert not await provider.knows("es")
