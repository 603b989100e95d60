"""The demo's secrets: made on first start, kept in DATA_DIR/demo.json, readable by their owner alone.

Only without SECRET_KEY, when the gateway binds to loopback. Production keeps secrets in its environment,
and the text of an API key nowhere.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from api.settings import Settings


@dataclass
class Secrets:
    """What a gateway needs to sign tokens and let an admin in; `tenant_key` only in the demo."""

    secret_key: str
    admin_password: str
    tenant_id: str = ""
    tenant_key: str = ""


def secrets_of(settings: Settings) -> Secrets:
    """The configured secrets, or the demo's."""
    password = settings.admin_password.get_secret_value()
    if not settings.demo:
        return Secrets(settings.secret_key.get_secret_value(), password)
    path = _path(settings)
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Secrets)
    except FileNotFoundError:
        kept = Secrets(secrets.token_urlsafe(48), secrets.token_urlsafe(12))
        keep(settings, kept)
    if password:
        kept.admin_password = password
    return kept


def keep(settings: Settings, demo: Secrets) -> None:
    """Write the demo's secrets."""
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(demo))
    partial.replace(path)


def _path(settings: Settings) -> Path:
    return settings.data_dir / "demo.json"
