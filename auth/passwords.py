"""Passwords, hashed with argon2id by passlib (its maintained fork, libpass); the only file that imports it.

Hashing takes tens of milliseconds and 64 MiB by design: call from a thread, never from the event loop.
"""

from __future__ import annotations

from passlib.hash import argon2

_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$L4VwLuW8d27tHeOck/K+tw$Imok+5oKIVGBEI1BKBsJ40kALID8FCxnOlTe/0KBRUM"
"""A hash that nobody's password has, so that an unknown account costs the same work as a wrong password."""


def hash_password(password: str) -> str:
    """The argon2id hash to store."""
    return str(argon2.hash(password))


def verify_password(password: str, stored: str | None) -> bool:
    """Whether `password` has the hash `stored`; equal work where there is no such account (None)."""
    matches = bool(argon2.verify(password, stored or _NOBODY))
    return matches and stored is not None
