"""Tokens of our own, and keys: what the signer signs it reads; all else gets one and the same answer."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from auth import jws
from auth.jws import MAX_TOKEN_CHARACTERS
from auth.principal import NotAuthenticated, Scope
from auth.tokens import Claims, TokenSigner
from tests.auth.support import NOW, SECRET, base64url, claims, forge, kid_of
from tests.support.openid import KeyRing, SigningKey

SIGNER = TokenSigner(SECRET)
ES, RS = SigningKey("es", "ES256"), SigningKey("rs", "RS256")
RING = KeyRing()
ADMIN = frozenset({Scope.ADMIN})
GOOD = forge(claims())
DEEP = b'{"a":' + b"[" * 1300 + b"]" * 1300 + b"}"


def test_the_forge_of_these_tests_makes_good_tokens():
    """Whatever is refused below is refused for its own fault."""
    assert SIGNER.read(GOOD, now=NOW) == Claims("j1", ADMIN, NOW, NOW + 60, user="admin@localhost")


@pytest.mark.parametrize(
    "who",
    [
        {"user": "admin@localhost", "scopes": ADMIN},
        {"key_id": "abcdefabcdef", "scopes": frozenset({Scope.CHAT, Scope.USAGE_READ})},
        {"key_id": "abcdefabcdef", "end_user": "ünï ✓", "scopes": frozenset({Scope.CHAT})},
        {"key_id": "abcdefabcdef", "scopes": frozenset()},
        {
            "key_id": "abcdefabcdef",
            "scopes": frozenset({Scope.EMBEDDINGS, Scope.TENANT_ADMIN}),
            "models": ("gpt-*", "llama"),
            "max_streams": 1,
            "max_tokens": 2**40,
        },
    ],
)
def test_what_is_signed_can_be_read(who):
    """Scopes, key, users and limits come back, and the life is the one that was asked for."""
    signed = SIGNER.sign(now=NOW + 0.9, ttl_seconds=60, **who)
    read = SIGNER.read(signed.text, now=NOW + 1)
    assert read == Claims(signed.id, issued_at=NOW, expires_at=NOW + 60, **who)
    assert signed.expires_at == NOW + 60


def test_a_token_holds_until_its_second_and_not_beyond():
    """Expiry is by the caller's clock, without leeway."""
    token = SIGNER.sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u").text
    assert SIGNER.read(token, now=NOW + 9.999).expires_at == NOW + 10
    with pytest.raises(NotAuthenticated):
        SIGNER.read(token, now=NOW + 10)


def test_each_token_has_an_id_of_its_own():
    """So that one of them can be named in a log, and revoked."""
    tokens = [SIGNER.sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u") for _ in range(50)]
    assert len({SIGNER.read(token.text, now=NOW).id for token in tokens}) == 50


def test_a_signed_token_does_not_show_itself():
    """It may stand in a log by its id; its text is a credential."""
    signed = SIGNER.sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u")
    assert signed.id in repr(signed)
    assert not any(part in repr(signed) for part in signed.text.split("."))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"user": None}, "not text"),
        ({"ttl_seconds": 0}, "expired"),
        ({"max_streams": 0}, "not a number"),
        ({"max_tokens": -1}, "not a number"),
        ({"max_tokens": True}, "not a number"),
        ({"max_tokens": 2**53}, "not a number"),
        ({"models": []}, "not a list"),
        ({"models": ["m" * MAX_TOKEN_CHARACTERS]}, "too long"),
    ],
)
def test_what_could_not_be_read_is_not_signed(asked, why):
    """A token that nobody could use is an error here, not a riddle there."""
    with pytest.raises(ValueError, match=why):
        SIGNER.sign(**{"now": NOW, "ttl_seconds": 10, "scopes": ADMIN, "user": "u"} | asked)


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
    "no alg": forge(claims(), {"alg": None}),
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
    "no kid": forge(claims(), {"kid": None}),
    "the kid of another secret": forge(claims(), {"kid": kid_of("t" * 32)}, secret="t" * 32),
    "kid is a number": forge(claims(), {"kid": 7}),
    "kid is empty": forge(claims(), {"kid": ""}),
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
    "exp is beyond numbers": forge(claims(exp=2**53)),
    "iat is text": forge(claims(iat=str(NOW))),
    "iat is true": forge(claims(iat=True)),
    "iat is a fraction": forge(claims(iat=NOW - 0.5)),
    "iat is negative": forge(claims(iat=-1)),
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
    "user is a number": forge(claims(user=7)),
    "models is text": forge(claims(models="gpt-4o")),
    "models is empty": forge(claims(models=[])),
    "models holds a number": forge(claims(models=["gpt-4o", 7])),
    **{
        f"{name} is {value}": forge(claims(**{name: value}))
        for name in ("max_streams", "max_tokens")
        for value in (0, -1, 1.5, 1.0, True, "1", [1], 2**53)
    },
    "a claim that is not known": forge(claims(max_cost=1)),
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


def test_a_token_is_read_by_its_own_secret_alone():
    """The key is named by the token, and the name is bound to the key: a good signature is not enough."""
    both = TokenSigner(SECRET, retired=["t" * 32])
    for secret in (SECRET, "t" * 32):
        for kid in (SECRET, "t" * 32):
            token = forge(claims(), {"kid": kid_of(kid)}, secret=secret)
            if secret == kid:
                assert both.read(token, now=NOW).id == "j1"
            else:
                with pytest.raises(NotAuthenticated):
                    both.read(token, now=NOW)


def test_a_secret_is_replaced_without_a_refusal():
    """Old tokens hold while their secret is retired, and not after; new ones are signed with the new one."""
    old, new = "o" * 32, "n" * 32
    before, during, after = TokenSigner(old), TokenSigner(new, retired=[old]), TokenSigner(new)
    first = before.sign(now=NOW, ttl_seconds=60, scopes=ADMIN, user="u")
    second = during.sign(now=NOW, ttl_seconds=60, scopes=ADMIN, user="u")
    assert during.read(first.text, now=NOW).id == first.id
    assert during.read(second.text, now=NOW).id == after.read(second.text, now=NOW).id == second.id
    for signer, token in ((before, second), (after, first)):
        with pytest.raises(NotAuthenticated):
            signer.read(token.text, now=NOW)


@pytest.mark.parametrize("secrets", [("s" * 31,), (SECRET, ["s" * 31]), ("",), (SECRET, [""])])
def test_a_secret_that_can_be_guessed_is_refused(secrets):
    """RFC 7518, 3.2: no shorter than the hash; and the refusal does not quote it."""
    with pytest.raises(ValueError, match="at least 32 bytes") as refused:
        TokenSigner(*secrets)
    assert "sss" not in str(refused.value)


def test_the_name_of_a_secret_does_not_tell_it():
    """Neither it nor its bare hash stands in the token; and the name is the same on every worker."""
    header = SIGNER.sign(now=NOW, ttl_seconds=9, scopes=ADMIN, user="u").text.split(".")[0]
    kid = json.loads(base64.urlsafe_b64decode(header + "=="))["kid"]
    assert kid == kid_of(SECRET)
    assert kid not in hashlib.sha256(SECRET.encode()).hexdigest()
    assert len(kid) == 16


@given(st.text(max_size=60) | st.lists(st.binary(max_size=30).map(base64url), max_size=6).map(".".join))
def test_a_strangers_text_is_no_token(text):
    """Anything at all is refused as such, and raises nothing else."""
    with pytest.raises(NotAuthenticated):
        SIGNER.read(text, now=NOW)


@given(st.integers(0, len(GOOD) - 1), st.characters() | st.sampled_from(GOOD))
def test_a_changed_character_is_refused(position, character):
    """Also the last one of the signature, which can be spelled in ways that mean the same octets."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed != GOOD:
        with pytest.raises(NotAuthenticated):
            SIGNER.read(changed, now=NOW)


def test_a_signature_has_one_spelling():
    """Unused bits at its end are zero (RFC 4648, 3.5): else one token would be several texts."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    respelt = GOOD[:-1] + alphabet[alphabet.index(GOOD[-1]) + 1]
    one, other = (base64.urlsafe_b64decode(token.split(".")[2] + "=") for token in (GOOD, respelt))
    assert one == other
    with pytest.raises(NotAuthenticated):
        SIGNER.read(respelt, now=NOW)


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
    token = TokenSigner(secret).sign(now=NOW, ttl_seconds=10, scopes=ADMIN, user="u").text
    assert TokenSigner(secret).read(token, now=NOW).user == "u"
    with pytest.raises(NotAuthenticated):
        TokenSigner(secret + "x").read(token, now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        *({name: "x"} for name in ("crit", "jku", "x5u", "jwk", "x5c", "b64", "zip", "enc")),
        *({"kid": kid} for kid in (7, ["key-1"], {}, "", "k" * 257, "k\n", "k\0", "\ud800")),
        *({"typ": typ} for typ in ("JWE", 7, "")),
        {"alg": None},
        {"alg": ["RS256"]},
    ],
    ids=str,
)
def test_a_header_that_asks_for_something_is_not_even_peeked_at(header):
    """No key is looked for and nothing is fetched on the word of a token that is odd."""
    with pytest.raises(NotAuthenticated):
        jws.peek(RING.sign({}, header=header))


@pytest.mark.parametrize("rest", ["", ".", ".x", ".e30", ".e30.e30"])
def test_a_token_has_three_parts(rest):
    """A JWE has five: it is refused for that alone, whatever its parts may say."""
    token = RING.sign({"iss": "x"})
    assert jws.peek(token) == ("RS256", "key-1", "x")
    with pytest.raises(NotAuthenticated):
        jws.peek(f"{token}{rest}" if rest else token.rpartition(".")[0])


@pytest.mark.parametrize("alg", ["RS384", "HS256", "none", "ES256"])
def test_a_token_that_misnames_its_algorithm_is_refused(alg):
    """By the key itself, though the signature is good: the key knows what it is for."""
    key = jws.key_of(RING.keys[RING.signs].jwk(), "RS256")
    assert jws.verify(RING.sign({"a": 1}), key) == {"a": 1}
    with pytest.raises(NotAuthenticated):
        jws.verify(RING.sign({}, alg=alg), key)


def test_a_key_shows_nothing_of_itself():
    """Its text names the algorithm; a secret cannot be had from a log."""
    assert repr(jws.key_of(b"s" * 32, "HS256")) == "<VerificationKey HS256>"


@pytest.mark.parametrize(
    ("material", "algorithm"),
    [
        (b"s" * 32, "RS256"),
        (b"s" * 32, "ES256"),
        (RS.pem(), "HS256"),
        (RS.pem(), "ES256"),
        (RS.jwk(), "HS256"),
        (ES.pem(), "RS256"),
        (ES.pem(), "ES384"),
        (SigningKey("x", "ES384").pem(), "ES256"),
        (b"s" * 47, "HS384"),
        (b"s" * 63, "HS512"),
        (RS.pem(), "PS256"),
        (RS.pem(), "none"),
        (RS.pem(), ""),
        ("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----", "RS256"),
        ("\ud800", "RS256"),
    ],
)
def test_a_key_is_bound_to_its_algorithm(material, algorithm):
    """A mismatch is an error of the configuration, not a refusal of every token later."""
    with pytest.raises(ValueError, match=r"needs|not a public key|none that is supported"):
        jws.key_of(material, algorithm)


def test_a_public_key_signs_nothing():
    """Only a secret does."""
    with pytest.raises(ValueError, match="signs nothing"):
        jws.sign({}, jws.key_of(RS.pem(), "RS256"), "kid")


def test_a_private_key_is_no_configuration():
    """The gate has no use for it, and who pastes it has made a mistake."""
    pem = RS.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(ValueError, match="not a public key"):
        jws.key_of(pem, "RS256")
