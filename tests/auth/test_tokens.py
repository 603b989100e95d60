"""Tokens: what the signer signs it reads, and whatever else is sent gets one and the same answer."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import NotAuthenticated, Scope
from auth.tokens import MAX_TOKEN_CHARACTERS, Claims, TokenSigner
from tests.auth.support import NOW, SECRET, base64url, claims, forge

SIGNER = TokenSigner(SECRET)
ADMIN = frozenset({Scope.ADMIN})
GOOD = forge(claims())
DEEP = b'{"a":' + b"[" * 1300 + b"]" * 1300 + b"}"


def test_the_forge_of_these_tests_makes_good_tokens():
    """Whatever is refused below is refused for its own fault."""
    assert SIGNER.read(GOOD, now=NOW) == Claims("j1", ADMIN, NOW + 60, user="admin@localhost")


@pytest.mark.parametrize(
    "who",
    [
        {"user": "admin@localhost", "scopes": ADMIN},
        {"key_id": "abcdefabcdef", "scopes": frozenset({Scope.CHAT, Scope.USAGE_READ})},
        {"key_id": "abcdefabcdef", "end_user": "ünï ✓", "scopes": frozenset({Scope.CHAT})},
        {"key_id": "abcdefabcdef", "scopes": frozenset()},
    ],
)
def test_what_is_signed_can_be_read(who):
    """Scopes, key, user and end user come back, and the expiry is the one that was asked for."""
    read = SIGNER.read(SIGNER.sign(now=NOW + 0.9, ttl_seconds=60, **who), now=NOW + 1)
    assert read == Claims(read.id, expires_at=NOW + 60, **who)


def test_a_token_holds_until_its_second_and_not_beyond():
    """Expiry is by the caller's clock, without leeway."""
    token = SIGNER.sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u")
    assert SIGNER.read(token, now=NOW + 9.999).expires_at == NOW + 10
    with pytest.raises(NotAuthenticated):
        SIGNER.read(token, now=NOW + 10)


def test_each_token_has_an_id_of_its_own():
    """So that one of them can be named in a log."""
    tokens = [SIGNER.sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u") for _ in range(50)]
    assert len({SIGNER.read(token, now=NOW).id for token in tokens}) == 50


HOSTILE = {
    "empty": "",
    "garbage": "garbage",
    "dots": "..",
    "not base64": "a.b.c",
    "not ascii": "é.é.é",
    "half a character": "\ud800.a.b",
    "no signature": GOOD.rsplit(".", 1)[0] + ".",
    "two parts": GOOD.rsplit(".", 1)[0],
    "four parts": GOOD + ".x",
    "five parts, a JWE": ".".join([base64url(b'{"alg":"dir","enc":"A256GCM"}'), "", "a", "b", "c"]),
    "a line end": GOOD + "\n",
    "alg none": forge(claims(), {"alg": "none"}),
    "alg none, unsigned": forge(claims(), {"alg": "none"}).rsplit(".", 1)[0] + ".",
    "alg None": forge(claims(), {"alg": "NONE"}),
    "no alg": forge(claims(), {"typ": "JWT"}),
    "alg of another type": forge(claims(), {"alg": ["HS256"]}),
    "another secret": forge(claims(), secret="t" * 32),
    "no secret": forge(claims(), secret=""),
    "HS512": forge(claims(), {"alg": "HS512"}, digest=hashlib.sha512),
    "HS384": forge(claims(), {"alg": "HS384"}, digest=hashlib.sha384),
    "RS256 signed with the secret": forge(claims(), {"alg": "RS256"}),
    "ES256 signed with the secret": forge(claims(), {"alg": "ES256"}),
    "a key in the header": forge(
        claims(), {"alg": "HS256", "jwk": {"kty": "oct", "k": base64url(b"t" * 32)}}, secret="t" * 32
    ),
    "header is a list": forge(claims(), b"[]"),
    "header is deep": forge(claims(), b"[" * 1300 + b"]" * 1300),
    "payload is deep": forge(DEEP),
    "payload is a list": forge(b"[]"),
    "payload is text": forge(b'"text"'),
    "payload is not UTF-8": forge(b"\xff\xfe"),
    "payload is empty": forge(b""),
    "other issuer": forge(claims(iss="other")),
    "other audience": forge(claims(aud="other")),
    "no audience of several": forge(claims(aud=["one", "other"])),
    "issuer is a list": forge(claims(iss=["sluicegate"])),
    "exp of yesterday": forge(claims(exp=NOW - 86400)),
    "exp now": forge(claims(exp=NOW)),
    "exp is text": forge(claims(exp=str(NOW + 60))),
    "exp is a fraction": forge(claims(exp=NOW + 60.5)),
    "exp is infinite": forge(claims(exp=float("inf"))),
    "exp is true": forge(claims(exp=True)),
    "exp is a list": forge(claims(exp=[NOW + 60])),
    "exp null": forge(json.dumps(claims() | {"exp": None}).encode()),
    "nbf, past": forge(claims(nbf=NOW - 60)),
    "nbf, to come": forge(claims(nbf=NOW + 30)),
    "unknown scope": forge(claims(scope="admin root")),
    "scope is a list": forge(claims(scope=["admin"])),
    "scope null": forge(json.dumps(claims() | {"scope": None}).encode()),
    "jti is a number": forge(claims(jti=7)),
    "sub is a number": forge(claims(sub=7)),
    "key is a number": forge(claims(key=7)),
    "key null": forge(json.dumps(claims() | {"key": None}).encode()),
    "end user is a list": forge(claims(end_user=["x"])),
    "hash of an access token": forge(claims(at_hash="x")),
    "huge": forge(claims(pad="x" * MAX_TOKEN_CHARACTERS)),
    "huge garbage": "a" * 10_000_000,
    **{
        f"no {name}": forge(claims(**{name: None}))
        for name in ("exp", "iat", "iss", "aud", "sub", "jti", "scope")
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_token_is_refused_without_a_word_more(name):
    """Every one of them raises NotAuthenticated with the same public text: nothing is learnt from trying."""
    with pytest.raises(NotAuthenticated) as refused:
        SIGNER.read(HOSTILE[name], now=NOW)
    assert str(refused.value) == str(NotAuthenticated())
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@given(st.text(max_size=60) | st.lists(st.binary(max_size=30).map(base64url), max_size=6).map(".".join))
def test_a_strangers_text_is_no_token(text):
    """Anything at all is refused as such, and raises nothing else."""
    with pytest.raises(NotAuthenticated):
        SIGNER.read(text, now=NOW)


@given(st.integers(0, len(GOOD.rsplit(".", 1)[0]) - 1), st.characters())
def test_a_changed_character_under_the_signature_is_refused(position, character):
    """Header and payload cannot be touched."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed != GOOD:
        with pytest.raises(NotAuthenticated):
            SIGNER.read(changed, now=NOW)


@pytest.mark.parametrize(
    "secret",
    [
        "0" * 32,
        "ü" * 32,
        '"' + "s" * 32 + '"',  # as `docker run --env-file` passes a quoted line
        '["' + "s" * 32 + '"]',
        '{"k": "' + "s" * 32 + '"}',
        "-----BEGIN PUBLIC KEY-----" + "s" * 32,
        "ssh-rsa " + "s" * 32,
    ],
)
def test_any_text_can_be_the_secret(secret):
    """What one worker signs another reads, also if the secret looks like JSON or like a key file."""
    token = TokenSigner(secret).sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u")
    assert TokenSigner(secret).read(token, now=NOW).user == "u"
    with pytest.raises(NotAuthenticated):
        TokenSigner(secret + "x").read(token, now=NOW)
