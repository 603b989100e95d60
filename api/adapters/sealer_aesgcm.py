"""Secrets at rest: AES-256-GCM, under keys made of SECRET_KEY and of those it had before.

A sealed value is `version | key id | nonce | ciphertext and tag`. What it belongs to is authenticated
with it, so that a row's value is worth nothing in another row. Sources: NIST SP 800-38D; RFC 5869, for keys.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Iterable

_VERSION = b"\x01"
_ID_BYTES, _NONCE_BYTES, _KEY_BYTES = 4, 12, 32
_PURPOSE = b"sluicegate provider keys"


class CannotOpen(Exception):  # noqa: N818 - reads as what happened
    """It was sealed under a secret that is not here, or for another place, or was changed."""


class Sealer:
    """Seals under the present secret; opens what was sealed under it or a retired one."""

    def __init__(self, secret: str, retired: Iterable[str] = ()) -> None:
        keys = [_key(one) for one in (secret, *retired)]
        self._present = _id(keys[0])
        self._ciphers = {_id(key): AESGCM(key) for key in reversed(keys)}

    def seal(self, text: str, belongs_to: str) -> bytes:
        """The text, for that place alone."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._present].encrypt(nonce, text.encode(), belongs_to.encode())
        return _VERSION + self._present + nonce + sealed

    def open(self, sealed: bytes, belongs_to: str) -> str:
        """The text again. Raises CannotOpen."""
        cipher = self._ciphers.get(sealed[1 : 1 + _ID_BYTES])
        if sealed[:1] != _VERSION or cipher is None:
            raise CannotOpen(f"what was sealed for {belongs_to} needs a SECRET_KEY that is not here")
        rest = sealed[1 + _ID_BYTES :]
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], belongs_to.encode()).decode()
        except (InvalidTag, ValueError):
            raise CannotOpen(f"what was sealed for {belongs_to} was changed, or is not for it") from None

    def is_present(self, sealed: bytes) -> bool:
        """Whether it was sealed under the present secret."""
        return sealed[: 1 + _ID_BYTES] == _VERSION + self._present


def _key(secret: str) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=_PURPOSE).derive(secret.encode())


def _id(key: bytes) -> bytes:
    return hashlib.sha256(b"id" + key).digest()[:_ID_BYTES]
