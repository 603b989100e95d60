"""API keys: `sg_<id>_<secret>`.

The id is public: it stands in lists and logs. The secret is 256 random bits in base 62 (43 characters)
with six characters of CRC-32 behind it, so that a typing error, or a scanner's find, is told from a real
key without a database. Only the SHA-256 of the secret is stored; a hash without salt or stretching is
right here, because 256 random bits cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from typing import NamedTuple

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 12
_SECRET_LENGTH = 43  # 62**43 > 2**256
_CHECK_LENGTH = 6  # 62**6 > 2**32
_KEY = re.compile(
    rf"sg_([0-9A-Za-z]{{{_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECK_LENGTH}}})"
)


class ApiKey(NamedTuple):
    """A key in the clear. Exists when it is issued and when it is presented; is never stored."""

    id: str
    secret: str

    @property
    def text(self) -> str:
        """What the caller sends."""
        return f"sg_{self.id}_{self.secret}"

    @property
    def sha256(self) -> bytes:
        """What is stored."""
        return hashlib.sha256(self.secret.encode()).digest()


def mint(key_id: str | None = None) -> ApiKey:
    """A new key, or a new secret for the key of that id."""
    number = secrets.randbits(256)
    body = _base62(number, _SECRET_LENGTH)
    key_id = key_id or "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
    return ApiKey(key_id, body + _check(key_id, body))


def parse(text: str) -> ApiKey | None:
    """The key in `text`, or None for anything that was never a key of ours."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    key_id, body, check = match.groups()
    if not hmac.compare_digest(_check(key_id, body), check):
        return None
    return ApiKey(key_id, body + check)


def same(sent_sha256: bytes, secret_sha256: bytes) -> bool:
    """Whether the two hashes are one; takes the same time either way."""
    return hmac.compare_digest(sent_sha256, secret_sha256)


def _check(key_id: str, body: str) -> str:
    return _base62(zlib.crc32(f"{key_id}_{body}".encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
