"""Identity providers: what a configuration may say, and what a token's claims come to mean."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from auth import jws
from auth.issuers import ForeignClaims, IssuerConfig, Issuers, load_issuers
from auth.memory import REVOKED_SECONDS
from auth.principal import TENANT_SCOPES, NotAuthenticated, Scope
from tests.auth.support import NOW, HandClock, TokenGate
from tests.support.openid import AUDIENCE, CURVES, KeyRing, SigningKey, base64url, hmac_signed

ACME = KeyRing("https://acme.example", "ES256")
URL = "https://acme.example/keys"
WORD = "THE-SECRET-VALUE"
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
PEMS = {name: SigningKey(name, name).pem() for name in ("RS256", "ES256", "ES384")}
PEMS["weak"] = WEAK.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
EVERYTHING = list(Scope)


def entry(**changes: Any) -> dict[str, Any]:
    """A good entry; None takes a field away."""
    good = {"issuer": ACME.issuer, "audience": AUDIENCE, "jwks_url": URL}
    return {name: value for name, value in (good | changes).items() if value is not None}


def trusting(**config: Any) -> TokenGate:
    return TokenGate({URL: ACME}, **config)


async def read(claims: dict[str, Any], **config: Any) -> ForeignClaims:
    """What the gate makes of good claims with these changes; None takes one away."""
    read = await trusting(**config).admit(ACME.sign(ACME.claims(NOW, **claims)))
    assert isinstance(read, ForeignClaims)
    return read


REFUSED = {
    "no issuer": (entry(issuer=None), "issuer"),
    "issuer is empty": (entry(issuer=""), "issuer"),
    "issuer is ours": (entry(issuer="sluicegate"), "issuer"),
    "issuer is nearly ours": (entry(issuer="SluiceGate"), "issuer"),
    "no audience": (entry(audience=None), "audience"),
    "audience is empty": (entry(audience=[]), "audience"),
    "audience has an empty one": (entry(audience=["a", ""]), "audience"),
    "audience is a number": (entry(audience=7), "audience"),
    "no algorithms": (entry(algorithms=[]), "algorithms"),
    "algorithm none": (entry(algorithms=["RS256", "none"]), "algorithms"),
    "algorithm that jose has not": (entry(algorithms=["PS256"]), "algorithms"),
    "HS256 by URL": (entry(algorithms=["RS256", "HS256"]), "jwks_url"),
    "http": (entry(jwks_url="http://acme.example/keys"), "jwks_url"),
    "http that seems loopback": (entry(jwks_url="http://localhost.acme.example/keys"), "jwks_url"),
    "http by a user that seems loopback": (entry(jwks_url="http://localhost@acme.example/"), "jwks_url"),
    "another scheme": (entry(jwks_url="file:///etc/passwd"), "jwks_url"),
    "no host": (entry(jwks_url="https:///keys"), "jwks_url"),
    "a password": (entry(jwks_url=f"https://u:{WORD}@acme.example/keys"), "jwks_url"),
    "a fragment": (entry(jwks_url="https://acme.example/keys#x"), "jwks_url"),
    "broken address": (entry(jwks_url="https://[::1/keys"), "jwks_url"),
    "no keys": (entry(jwks_url=None), "exactly one of jwks_url, public_key and secret"),
    "keys twice": (entry(public_key=PEMS["RS256"]), "exactly one of jwks_url, public_key and secret"),
    "all keys": (entry(public_key=PEMS["RS256"], secret=WORD * 2), "secret"),
    "PEM of another kind": (entry(jwks_url=None, public_key=PEMS["ES256"]), "public_key: RS256 needs"),
    "PEM of one kind of two": (
        entry(jwks_url=None, public_key=PEMS["RS256"], algorithms=["RS256", "ES256"]),
        "public_key: ES256 needs",
    ),
    "PEM of another curve": (
        entry(jwks_url=None, public_key=PEMS["ES384"], algorithms=["ES256"]),
        "public_key: ES256 needs",
    ),
    "PEM that is weak": (entry(jwks_url=None, public_key=PEMS["weak"]), "public_key: an RSA key has"),
    "PEM that is none": (entry(jwks_url=None, public_key=WORD), "public_key: not a public key"),
    "PEM as a secret": (
        entry(jwks_url=None, public_key=PEMS["RS256"], algorithms=["HS256"]),
        "public_key: HS256 needs a secret",
    ),
    "secret without an algorithm": (entry(jwks_url=None, secret=WORD * 2), "secret: RS256 needs a public"),
    "secret that is short": (
        entry(jwks_url=None, secret=WORD + "x" * 15, algorithms=["HS256"]),
        "secret",
    ),
    "secret that is short for its hash": (
        entry(jwks_url=None, secret=WORD * 3, algorithms=["HS512"]),
        "secret: HS512 needs a secret of at least 64",
    ),
    "tenant twice": (entry(tenant="acme", tenant_claim="tenant"), "tenant and tenant_claim"),
    "tenant is empty": (entry(tenant=""), "tenant"),
    "tenant is too long": (entry(tenant="t" * 201), "tenant"),
    "tenant_claim is empty": (entry(tenant_claim=""), "tenant_claim"),
    "scope unknown": (entry(scope_map={WORD: WORD}), "scope_map"),
    "grant unknown": (entry(grants=["chat", WORD]), "grants"),
    "default beyond the grants": (entry(grants=["chat"], default_scopes=["usage:read"]), "default_scopes"),
    "default admin": (entry(default_scopes=["admin"]), "default_scopes"),
    "skew negative": (entry(clock_skew_seconds=-1), "clock_skew_seconds"),
    "skew too long": (entry(clock_skew_seconds=301), "clock_skew_seconds"),
    "skew is text": (entry(clock_skew_seconds="60"), "clock_skew_seconds"),
    "skew is true": (entry(clock_skew_seconds=True), "clock_skew_seconds"),
    "life of nothing": (entry(max_lifetime_seconds=0), "max_lifetime_seconds"),
    "life too long": (entry(max_lifetime_seconds=86_401), "max_lifetime_seconds"),
    "a word that is not known": (entry(jwks_uri=URL), "jwks_uri"),
    "no object": (WORD, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_cannot_be_meant_is_refused(name):
    """At the start, by the entry and the field; what was written there stands in no error."""
    wrong, where = REFUSED[name]
    with pytest.raises(ValueError, match=r"^issuers\[1\]") as refused:
        load_issuers(json.dumps([entry(issuer="https://first.example"), wrong]))
    assert where in str(refused.value)
    assert WORD not in f"{refused.value!r} {refused.value.__cause__!r}"


@pytest.mark.parametrize(
    "text", ["", "{", "7", "null", '{"issuers": {}}', '{"issuer": []}', '[{"a":1,"a":1}]']
)
def test_what_is_no_list_of_issuers_is_refused(text):
    """As a whole, without quoting it."""
    with pytest.raises(ValueError, match=r"not JSON|a list is wanted"):
        load_issuers(text)


def test_the_list_may_have_a_name():
    """A list alone, or as `issuers`; the defaults are the careful ones."""
    (config,) = load_issuers(json.dumps([entry()]))
    assert load_issuers(json.dumps({"issuers": [entry()]})) == (config,)
    assert load_issuers("[]") == ()
    assert (config.algorithms, config.audience, config.grants) == (("RS256",), (AUDIENCE,), TENANT_SCOPES)
    assert (config.default_scopes, config.clock_skew_seconds) == (frozenset(), 60)


def test_two_entries_for_one_issuer_are_refused():
    """Which of them would hold? Neither a file nor a caller gets that far."""
    twice = [entry(), entry(issuer="https://other.example"), entry(audience="x")]
    with pytest.raises(ValueError, match=r"issuers\[2\].issuer: the same as of issuers\[0\]"):
        load_issuers(json.dumps(twice))
    configs = [IssuerConfig.model_validate(one) for one in twice]
    with pytest.raises(ValueError, match="the same"):
        Issuers(configs, TokenGate({})._fetch, HandClock())


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "[::1]:8080", "localhost", "127.9.9.9"])
def test_http_is_good_enough_for_loopback(host):
    """Where nobody listens in."""
    assert load_issuers(json.dumps([entry(jwks_url=f"http://{host}/keys")]))


def test_a_configuration_shows_no_secret():
    """Not in its text either."""
    (config,) = load_issuers(json.dumps([entry(jwks_url=None, secret=WORD * 2, algorithms=["HS256"])]))
    assert WORD not in f"{config!r} {config}"


async def test_a_good_token_is_read_as_it_is():
    """Each claim in its place."""
    assert await read({}) == ForeignClaims(
        issuer=ACME.issuer,
        tenant="acme",
        scopes=frozenset({Scope.CHAT}),
        end_user="ann",
        token_id="token-1",
        issued_at=NOW,
        expires_at=NOW + 660,
    )


NAMED = "https://acme.example/tenant"
MAPPED = {"llm.use": "chat", "boss": "admin"}
MAPPINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "tenant of another name": ({"org": "o1"}, {"tenant_claim": "org"}, {"tenant": "o1"}),
    "tenant is a number": ({"tenant": 42}, {}, {"tenant": "42"}),
    "tenant in a path": ({"a": {"b": {"c": "o1"}}}, {"tenant_claim": "a.b.c"}, {"tenant": "o1"}),
    "tenant of a name with dots": ({NAMED: "o1"}, {"tenant_claim": NAMED}, {"tenant": "o1"}),
    "whole name before path": ({"a.b": "o1", "a": {"b": "o2"}}, {"tenant_claim": "a.b"}, {"tenant": "o1"}),
    "tenant fixed": ({"tenant": "evil"}, {"tenant": "acme-corp"}, {"tenant": "acme-corp"}),
    "tenant fixed, claim of any type": ({"tenant": []}, {"tenant": "acme-corp"}, {"tenant": "acme-corp"}),
    "tenant, 200 characters": ({"tenant": "t" * 200}, {}, {"tenant": "t" * 200}),
    "tenant in another script": ({"tenant": "ünï ✓"}, {}, {"tenant": "ünï ✓"}),
    "scopes as text": ({"scope": "openid chat usage:read"}, {}, {"scopes": {"chat", "usage:read"}}),
    "scopes as a list": ({"scp": ["chat", "x"]}, {"scope_claim": "scp"}, {"scopes": {"chat"}}),
    "scopes in a path": ({"r": {"roles": ["chat"]}}, {"scope_claim": "r.roles"}, {"scopes": {"chat"}}),
    "scopes of none": ({"scope": ""}, {"default_scopes": ["chat"]}, {"scopes": set()}),
    "no scopes": ({"scope": None}, {}, {"scopes": set()}),
    "no scopes, a default": ({"scope": None}, {"default_scopes": ["chat"]}, {"scopes": {"chat"}}),
    "scopes beyond the grants": ({"scope": "chat admin tenant:admin"}, {}, {"scopes": {"chat"}}),
    "scopes cut to the grants": ({"scope": "chat usage:read"}, {"grants": ["chat"]}, {"scopes": {"chat"}}),
    "admin where it is granted": ({"scope": "admin"}, {"grants": ["admin"]}, {"scopes": {"admin"}}),
    "scopes by a map": ({"scope": "llm.use"}, {"scope_map": MAPPED}, {"scopes": {"chat"}}),
    "our words beside a map": ({"scope": "embeddings"}, {"scope_map": MAPPED}, {"scopes": set()}),
    "their admin beside a map": (
        {"scope": "admin llm.use"},
        {"scope_map": MAPPED, "grants": EVERYTHING},
        {"scopes": {"chat"}},
    ),
    "a map beyond the grants": ({"scope": "boss llm.use"}, {"scope_map": MAPPED}, {"scopes": {"chat"}}),
    "end user of another name": ({"email": "a@b"}, {"end_user_claim": "email"}, {"end_user": "a@b"}),
    "no end user wanted": ({"sub": ["x"]}, {"end_user_claim": None}, {"end_user": None}),
    "no end user there": ({"sub": None}, {}, {"end_user": None}),
    "admin without a tenant": ({"scope": "admin", "tenant": None}, {"grants": ["admin"]}, {"tenant": None}),
    "admin with a tenant": ({"scope": "admin"}, {"grants": ["admin"]}, {"tenant": "acme"}),
    "audience of several": ({"aud": ["other", AUDIENCE]}, {}, {}),
    "one of our audiences": ({"aud": "b"}, {"audience": ["a", "b"]}, {}),
    "ends within a second": ({"exp": NOW + 1.5}, {}, {"expires_at": NOW + 62}),
    "issued within a second": ({"iat": NOW - 0.5}, {}, {"issued_at": NOW - 1}),
    "ended within the skew": ({"exp": NOW - 59}, {}, {"expires_at": NOW + 1}),
    "begins within the skew": ({"nbf": NOW + 60, "iat": NOW + 60}, {}, {"issued_at": NOW + 60}),
    "no skew": ({"exp": NOW + 1}, {"clock_skew_seconds": 0}, {"expires_at": NOW + 1}),
    "as long a life as may be": ({"exp": NOW + 86_400}, {}, {"expires_at": NOW + 86_460}),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPPINGS)
async def test_claims_mean_what_the_configuration_says(name):
    """From their words to ours; what an issuer may not grant is left out, not refused."""
    claims, config, wanted = MAPPINGS[name]
    found = await read(claims, **config)
    assert {field: getattr(found, field) for field in wanted} == wanted


NARROW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no tenant": ({"tenant": None}, {}),
    "no tenant for who is no admin": ({"tenant": None, "scope": "chat tenant:admin"}, {"grants": EVERYTHING}),
    "no tenant for who may not be admin": ({"tenant": None, "scope": "admin"}, {}),
    "an admin's tenant of another type": ({"tenant": [], "scope": "admin"}, {"grants": ["admin"]}),
    "a path that ends early": ({"a": "b"}, {"tenant_claim": "a.b"}),
    "a path that goes on": ({"a": {"b": {"c": "x"}}}, {"tenant_claim": "a.b"}),
    "a path through a list": ({"a": [{"b": "x"}]}, {"tenant_claim": "a.0.b"}),
    "end user of another type": ({"email": ["a@b"]}, {"end_user_claim": "email"}),
    "ended without a skew": ({"exp": NOW}, {"clock_skew_seconds": 0}),
    "begins without a skew": ({"nbf": NOW + 1}, {"clock_skew_seconds": 0}),
    "issued without a skew": ({"iat": NOW + 1}, {"clock_skew_seconds": 0}),
    "a longer life than is allowed": ({"exp": NOW + 601}, {"max_lifetime_seconds": 600}),
    "not issued at any time": ({"iat": None}, {}),
    "another audience": ({}, {"audience": ["a", "b"]}),
    "an algorithm that is not pinned": ({}, {"algorithms": ["RS256"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
async def test_a_configuration_is_held_to(name):
    """What it does not allow is refused, though the token is good."""
    claims, config = NARROW[name]
    with pytest.raises(NotAuthenticated):
        await read(claims, **config)


async def test_no_token_outlives_the_memory_of_its_revocation():
    """Revoked at any moment at which it is accepted, it is refused for good before that is forgotten."""
    gate = trusting(clock_skew_seconds=300)
    token = ACME.sign(ACME.claims(NOW, exp=NOW + 86_400))
    gate.clock.seconds = -300
    first = await gate.admit(token)
    assert first.expires_at - gate.clock.unix() <= REVOKED_SECONDS
    gate.clock.seconds = first.expires_at - NOW - 0.001
    await gate.admit(token)
    gate.clock.seconds = first.expires_at - NOW
    with pytest.raises(NotAuthenticated):
        await gate.admit(token)


async def test_a_token_without_an_id_is_named_by_what_was_signed():
    """Also when its ECDSA signature was turned into the other good one: revoked is revoked."""
    gate, token = trusting(), ACME.sign(ACME.claims(NOW, jti=None))
    text, _, signature = token.rpartition(".")
    octets = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    turned = (order - int.from_bytes(octets[32:], "big")).to_bytes(32, "big")
    twin = f"{text}.{base64url(octets[:32] + turned)}"
    assert twin != token
    names = {(await gate.admit(one)).token_id for one in (token, twin)}
    assert len(names) == 1
    name = names.pop()
    assert name.startswith("sha256:")
    assert len(name) == 39
    other = await gate.admit(ACME.sign(ACME.claims(NOW, jti=None, sub="bob")))
    assert other.token_id != name


@pytest.mark.parametrize(
    "claims_and_alg", [({}, "RS256"), ({}, "HS256"), ({"iss": "https://nobody.example"}, "ES256")]
)
async def test_what_is_refused_anyhow_fetches_nothing(claims_and_alg):
    """An algorithm that is not pinned and an issuer that is not known: no key is looked for."""
    claims, alg = claims_and_alg
    gate = trusting()
    with pytest.raises(NotAuthenticated):
        await gate.admit(ACME.sign(ACME.claims(NOW, **claims), alg=alg))
    assert gate.asked == []


async def test_the_issuer_is_the_one_that_was_signed():
    """Two issuers with one key (two realms of a provider): what was peeked at elsewhere changes nothing."""
    realm = KeyRing("https://realm.example", "ES256")
    realm.keys = ACME.keys
    gate = TokenGate({URL: ACME, "https://realm.example/keys": realm})
    token = ACME.sign(realm.claims(NOW))
    assert (await gate.admit(token)).issuer == realm.issuer
    with pytest.raises(NotAuthenticated):
        await gate.issuers.read(token, jws.peek(ACME.sign(ACME.claims(NOW))))


async def test_issuers_do_not_mix():
    """Three providers whose keys bear the same name: each opens its own door alone."""
    rings = [KeyRing(f"https://{name}.example", "ES256") for name in ("a", "b", "c")]
    assert len({ring.signs for ring in rings}) == 1
    gate = TokenGate({f"{ring.issuer}/keys": ring for ring in rings})
    assert gate.issuers.has_key_sets
    for ring in rings:
        for named in rings:
            token = ring.sign(named.claims(NOW))
            if ring is named:
                assert (await gate.admit(token)).issuer == ring.issuer
            else:
                with pytest.raises(NotAuthenticated):
                    await gate.admit(token)
    assert sorted(gate.asked) == sorted(gate.providers)


async def test_a_refresh_asks_all_at_one_time():
    """The provider that hangs does not keep the others from being asked."""
    rings = [KeyRing(f"https://{name}.example", "ES256") for name in ("a", "b", "c")]
    gate = TokenGate({f"{ring.issuer}/keys": ring for ring in rings})
    all_asked = asyncio.Event()

    async def fetch(url: str) -> bytes:
        gate.asked.append(url)
        if len(gate.asked) == len(rings):
            all_asked.set()
        await all_asked.wait()
        return gate.providers[url].document()

    configs = [gate._config(url, ring, {}) for url, ring in gate.providers.items()]
    issuers = Issuers(configs, fetch, gate.clock)
    await issuers.refresh()
    await issuers.refresh()
    assert sorted(gate.asked) == sorted(gate.providers)
    for ring in rings:
        token = ring.sign(ring.claims(NOW))
        assert (await issuers.read(token, jws.peek(token))).issuer == ring.issuer
    assert len(gate.asked) == len(rings)


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", *CURVES])
async def test_a_public_key_in_the_configuration(algorithm):
    """Each algorithm by its own kind of key, without a fetch; the token may call the key what it likes."""
    ring = KeyRing("https://pem.example", algorithm)
    gate = TokenGate({"": ring}, jwks_url=None, public_key=ring.keys[ring.signs].pem())
    assert not gate.issuers.has_key_sets
    claims = ring.claims(NOW)
    for token in (ring.sign(claims), ring.sign(claims, header={"kid": None})):
        assert (await gate.admit(token)).tenant == "acme"
    with pytest.raises(NotAuthenticated):
        await gate.admit(KeyRing("https://pem.example", algorithm).sign(claims))
    await gate.issuers.refresh()
    assert gate.asked == []


@pytest.mark.parametrize("secret", ["s" * 64, '{"kty": "oct", "k": "' + "s" * 64 + '"}', PEMS["RS256"]])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_secret_in_the_configuration(algorithm, secret):
    """Octets and nothing else, whatever they look like."""
    config = {"jwks_url": None, "secret": secret, "algorithms": [algorithm]}
    gate = TokenGate({"": ACME}, **config)
    token = hmac_signed({"alg": algorithm}, ACME.claims(NOW), secret.encode())
    assert (await gate.admit(token)).tenant == "acme"
    for wrong in (f"{secret}x", secret[:-1], ""):
        with pytest.raises(NotAuthenticated):
            await gate.admit(hmac_signed({"alg": algorithm}, ACME.claims(NOW), wrong.encode()))


async def test_without_issuers_nobody_is_trusted():
    """And there is nothing to refresh."""
    gate = TokenGate({})
    assert not gate.issuers.has_key_sets
    await gate.issuers.refresh()
    with pytest.raises(NotAuthenticated):
        await gate.admit(ACME.sign(ACME.claims(NOW)))
