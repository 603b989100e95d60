"""An OpenID provider for tests: keys that rotate, tokens signed without the code under test, and a server.

`KeyRing` is the provider without a network. `OpenIDProvider` serves it over HTTP from a thread, so that it
also answers a gate in another process; it can fail and hang, and counts what it was asked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "https://gate.example"
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: bytes | dict[str, Any], payload: bytes | dict[str, Any]) -> str:
    """What a signature covers; bytes as they are, dicts as JSON."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join(map(base64url, parts))


def hmac_signed(header: dict[str, Any], payload: bytes | dict[str, Any], secret: bytes) -> str:
    """A token signed by HMAC, with the hash that the header's `alg` names, else SHA-256."""
    digest = f"sha{str(header.get('alg'))[-3:]}"
    signed = compact(header, payload)
    mac = hmac.new(secret, signed.encode(), digest if digest in hashlib.algorithms_available else "sha256")
    return f"{signed}.{base64url(mac.digest())}"


class SigningKey:
    """A private key that signs with one algorithm, and its public half in three spellings."""

    def __init__(self, kid: str | None, algorithm: str = "RS256") -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any = (
            ec.generate_private_key(CURVES[algorithm])
            if algorithm in CURVES
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )

    def sign(self, text: str) -> str:
        """The third segment of a token (RFC 7518, 3.3 and 3.4)."""
        digest = HASHES[self.algorithm[2:]]
        if self.algorithm not in CURVES:
            return base64url(self.private.sign(text.encode(), padding.PKCS1v15(), digest))
        size = (self.private.key_size + 7) // 8
        pair = utils.decode_dss_signature(self.private.sign(text.encode(), ec.ECDSA(digest)))
        return base64url(b"".join(number.to_bytes(size, "big") for number in pair))

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The entry of a key set; None takes a member away."""
        public = self.private.public_key().public_numbers()
        size = (self.private.key_size + 7) // 8
        if self.algorithm in CURVES:
            numbers = {"crv": f"P-{public.curve.key_size}", "x": public.x, "y": public.y, "kty": "EC"}
        else:
            numbers = {"kty": "RSA", "n": public.n, "e": public.e}
        members = {
            name: value if isinstance(value, str) else base64url(_octets(value, 3 if name == "e" else size))
            for name, value in numbers.items()
        }
        members |= {"kid": self.kid, "use": "sig", "alg": self.algorithm} | changes
        return {name: value for name, value in members.items() if value is not None}

    def pem(self) -> str:
        return (
            self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        )

    def der(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _octets(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


class KeyRing:
    """A provider's keys: which of them are published, and which one signs."""

    def __init__(self, issuer: str = "https://id.example", algorithm: str = "RS256") -> None:
        self.issuer = issuer
        self.keys: dict[str, SigningKey] = {}
        self.published: list[str] = []
        self._announced: str | None = None
        self.signs = self.rotate(algorithm)

    def announce(self, algorithm: str = "RS256", kid: str | None = None) -> str:
        """Publish the next key ahead of its use; returns its id."""
        kid = kid or f"key-{len(self.keys) + 1}"
        self.keys[kid] = SigningKey(kid, algorithm)
        self.published.append(kid)
        self._announced = kid
        return kid

    def rotate(self, algorithm: str = "RS256", kid: str | None = None) -> str:
        """Sign with the key that was announced, or else with a new one; returns its id."""
        self.signs = self._announced or self.announce(algorithm, kid)
        self._announced = None
        return self.signs

    def withdraw(self, kid: str) -> None:
        """Publish the key no longer. It can go on signing, as one that was stolen does."""
        self.published.remove(kid)

    def document(self) -> bytes:
        """The key set."""
        return json.dumps({"keys": [self.keys[kid].jwk() for kid in self.published]}).encode()

    def claims(self, now: float, **changes: Any) -> dict[str, Any]:
        """Claims that hold at `now` for ten minutes; None takes one away."""
        good = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ann",
            "tenant": "acme",
            "scope": "chat",
            "jti": "token-1",
            "iat": int(now),
            "exp": int(now) + 600,
        }
        return {name: value for name, value in (good | changes).items() if value is not None}

    def sign(
        self,
        claims: bytes | dict[str, Any],
        kid: str | None = None,
        alg: str | None = None,
        header: dict[str, Any] | None = None,
    ) -> str:
        """A token. `kid` chooses the key; `alg` and `header` change what the token says of itself."""
        key = self.keys[kid or self.signs]
        members = {"typ": "JWT", "kid": key.kid, "alg": alg or key.algorithm} | (header or {})
        text = compact({name: value for name, value in members.items() if value is not None}, claims)
        return f"{text}.{key.sign(text)}"


class OpenIDProvider(KeyRing):
    """A key ring behind HTTP on loopback. Use as a context."""

    def __init__(self, algorithm: str = "RS256") -> None:
        self.requests: list[str] = []
        self._state = "serves"
        self._go_on = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        super().__init__(f"http://127.0.0.1:{self._server.server_port}", algorithm)
        self.jwks_url = f"{self.issuer}/jwks.json"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.serve()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def fetches(self) -> int:
        """How often the key set was asked for."""
        return self.requests.count("/jwks.json")

    def serve(self) -> None:
        """Answer, also what hangs."""
        self._state = "serves"
        self._go_on.set()

    def fail(self) -> None:
        """Answer 503 from now on."""
        self._state = "fails"

    def hang(self) -> None:
        """Accept, and say nothing until `serve`."""
        self._go_on.clear()
        self._state = "hangs"

    def config(self, **changes: Any) -> dict[str, Any]:
        """The entry of the gate's configuration that trusts this provider."""
        algorithms = [self.keys[self.signs].algorithm]
        entry = {"issuer": self.issuer, "audience": AUDIENCE, "jwks_url": self.jwks_url}
        return entry | {"algorithms": algorithms} | changes

    def _answer(self, path: str) -> tuple[int, bytes]:
        self.requests.append(path)
        if self._state == "hangs":
            self._go_on.wait()
        if self._state == "fails":
            return 503, b"down for a while"
        if path == "/jwks.json":
            return 200, self.document()
        if path == "/.well-known/openid-configuration":
            return 200, json.dumps({"issuer": self.issuer, "jwks_uri": self.jwks_url}).encode()
        return 404, b"nothing here"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = provider._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                with suppress(OSError):  # whoever asked may have left meanwhile
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                """Not to the tests' own output."""

        return Handler
