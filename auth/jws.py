"""Signed tokens (JWS, RFC 7515) and the keys that check them; the only file that imports jose.

Fails closed. The signature is checked with the algorithm that the *key* is bound to, never with the one that
the token asks for (RFC 8725, 3.1), and what the header asks for beyond `alg`, `kid` and `typ` is refused: a
token does not choose its key, point at one or bring one along. Whatever is wrong with a token, the answer is
NotAuthenticated with the one public text. What the claims mean is for `tokens` and `issuers` to say.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jose import jwk
from jose import jws as jose_jws
from jose.exceptions import JOSEError

from auth.principal import NotAuthenticated

Algorithm = Literal["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512"]

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
"""All that python-jose can do; it has no PS256, which would otherwise be welcome."""

MAX_TOKEN_CHARACTERS = 8192
"""What fits into one header line of any server that may stand before us."""
MAX_KID_CHARACTERS = 256

_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_SEGMENTS = 3
_TYPES = {"jwt", "at+jwt"}  # RFC 7519, 5.1 and RFC 9068, 2.1; compared without case
_REFUSED_HEADERS = frozenset({"crit", "jku", "x5u", "jwk", "x5c", "b64", "zip", "enc"})

_MIN_RSA_BITS = 2048  # RFC 7518, 3.3
_MAX_RSA_BITS = 8192  # more is no safer, and each check of a signature costs by the square
_MAX_EXPONENT_BITS = 64
_CURVES: dict[str, tuple[str, type[ec.EllipticCurve]]] = {  # RFC 7518, 3.4 and 6.2.1.1
    "ES256": ("P-256", ec.SECP256R1),
    "ES384": ("P-384", ec.SECP384R1),
    "ES512": ("P-521", ec.SECP521R1),
}
_SECRET_OCTETS = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: no shorter than the hash


class Peeked(NamedTuple):
    """What a token says of itself before anything is proven: enough to choose the key, good for no more."""

    algorithm: str
    kid: str | None
    issuer: str | None


@dataclass(frozen=True, slots=True, repr=False)
class VerificationKey:
    """A key and the one algorithm that it may be used with. Made by `key_of`; shows nothing of itself."""

    algorithm: str
    _key: Any

    def __repr__(self) -> str:
        return f"<VerificationKey {self.algorithm}>"


def key_of(material: Mapping[str, Any] | str | bytes, algorithm: str) -> VerificationKey:
    """The key for `algorithm`.

    Args:
        material: a JWK with a public key (RFC 7517), the text of a public key in PEM, or a secret's octets.
        algorithm: one of ALGORITHMS. Its family has to be that of the key.

    Raises:
        ValueError: the key is broken, private, too weak, or not for that algorithm. The text tells nothing
            of the key.
    """
    if algorithm in _SECRET_OCTETS:
        return _secret(material, algorithm)
    if algorithm not in ALGORITHMS:
        raise ValueError("the algorithm is none that is supported")
    if isinstance(material, Mapping):
        public = _public_of_jwk(material)
    elif isinstance(material, str):
        public = _public_of_pem(material)
    else:
        raise ValueError(f"{algorithm} needs a public key, not a secret")  # noqa: TRY004 - one kind of error
    _check_fits(public, algorithm)
    return VerificationKey(algorithm, jwk.construct(public, algorithm))


def peek(token: str) -> Peeked:
    """What the token says of itself. Raises NotAuthenticated for what is not a plain signed JWT."""
    header, payload = _parse(token)
    issuer = payload.get("iss")
    return Peeked(header["alg"], header.get("kid"), issuer if isinstance(issuer, str) else None)


def verify(token: str, key: VerificationKey) -> dict[str, Any]:
    """The claims of a token that `key` signed, none of them checked. Raises NotAuthenticated otherwise."""
    _, payload = _parse(token)
    try:
        jose_jws.verify(token, key._key, [key.algorithm])  # noqa: SLF001 - opaque to all but this file
    except (JOSEError, ValueError, TypeError):
        raise NotAuthenticated from None
    return payload


def sign(claims: Mapping[str, Any], key: VerificationKey, kid: str) -> str:
    """A token with these claims. Raises ValueError for a public key, which signs nothing."""
    if key.algorithm not in _SECRET_OCTETS:
        raise ValueError("a public key signs nothing")
    return str(jose_jws.sign(claims, key._key, {"kid": kid}, key.algorithm))  # noqa: SLF001 - as above


def load_json(text: bytes | str) -> Any:
    """Strict JSON. Raises ValueError, also for what Python would let pass and another parser may not.

    That is NaN and numbers that overflow (RFC 8259, 6), a member named twice (RFC 7515, 4: two readers of
    one token must not see two tokens), and what is nested too deeply to be read.
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_members,
            parse_constant=_not_json,
            parse_float=_finite,
        )
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def is_printable(value: object, max_characters: int) -> bool:
    """Whether it is a text of 1 to so many characters that can stand in a log, a header and a database."""
    return isinstance(value, str) and 0 < len(value) <= max_characters and value.isprintable()


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of a JWS in compact form; the header is checked, the signature is not."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise NotAuthenticated
    segments = token.split(".")
    if len(segments) != _SEGMENTS:
        raise NotAuthenticated
    try:
        header, payload = (load_json(_octets(segment)) for segment in segments[:2])
        _octets(segments[2])
    except ValueError:
        raise NotAuthenticated from None
    if not isinstance(header, dict) or not isinstance(payload, dict):
        raise NotAuthenticated
    _check_header(header)
    return header, payload


def _check_header(header: dict[str, Any]) -> None:
    """Refuse a header that asks for more than a key by its name."""
    kind = header.get("typ", "JWT")
    fine = (
        isinstance(header.get("alg"), str)
        and isinstance(kind, str)
        and kind.lower() in _TYPES
        and ("kid" not in header or is_printable(header["kid"], MAX_KID_CHARACTERS))
        and _REFUSED_HEADERS.isdisjoint(header)
    )
    if not fine:
        raise NotAuthenticated


def _octets(segment: str) -> bytes:
    """base64url without padding (RFC 7515, 2), in its one spelling: unused bits at the end are zero."""
    if _SEGMENT.fullmatch(segment) is None:
        raise ValueError("not base64url")
    octets = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != segment.encode():
        raise ValueError("not base64url")
    return octets


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _not_json(_word: str) -> float:
    raise ValueError("no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no number")
    return number


def _secret(material: object, algorithm: str) -> VerificationKey:
    if not isinstance(material, bytes):
        raise ValueError(f"{algorithm} needs a secret, not a public key")  # noqa: TRY004 - one kind of error
    if len(material) < _SECRET_OCTETS[algorithm]:
        raise ValueError(f"{algorithm} needs a secret of at least {_SECRET_OCTETS[algorithm]} bytes")
    # As a JWK, because python-jose takes octets that look like a PEM file for one.
    octets = base64.urlsafe_b64encode(material).rstrip(b"=").decode()
    return VerificationKey(algorithm, jwk.construct({"kty": "oct", "k": octets}, algorithm))


def _public_of_pem(text: str) -> object:
    try:
        return load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a public key in PEM") from None


def _public_of_jwk(members: Mapping[str, Any]) -> object:
    """RFC 7518, 6.2.1 and 6.3.1. A private key is refused: who publishes one has lost it."""
    if "d" in members:
        raise ValueError("a private key")
    try:
        if members.get("kty") == "RSA":
            return rsa.RSAPublicNumbers(_number(members["e"]), _number(members["n"])).public_key()
        if members.get("kty") == "EC":
            curve = dict(_CURVES.values())[members["crv"]]
            return ec.EllipticCurvePublicNumbers(
                _number(members["x"]), _number(members["y"]), curve()
            ).public_key()
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        raise ValueError("not a public key") from None
    raise ValueError("not a public key of a kind that is supported")


def _number(text: object) -> int:
    if not isinstance(text, str):
        raise TypeError
    return int.from_bytes(_octets(text), "big")


def _check_fits(public: object, algorithm: str) -> None:
    if algorithm in _CURVES:
        name, curve = _CURVES[algorithm]
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, curve):
            raise ValueError(f"{algorithm} needs a key on the curve {name}")
    elif not isinstance(public, rsa.RSAPublicKey):
        raise ValueError(f"{algorithm} needs an RSA key")
    elif not _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS:
        raise ValueError(f"an RSA key has at least {_MIN_RSA_BITS} bits here, and {_MAX_RSA_BITS} at most")
    elif public.public_numbers().e.bit_length() > _MAX_EXPONENT_BITS:
        raise ValueError("an RSA key with such an exponent takes too long to be checked")
