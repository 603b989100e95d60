"""Settings: the only reader of the environment and of `.env`. Refuses combinations that are not safe.

Without SECRET_KEY the gateway is a demo: it makes its own secrets, keeps them in DATA_DIR, and binds to
loopback only.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.core.cloud_events import signing_key
from api.redis_url import parse_redis_url
from auth.issuers import IssuerConfig, is_loopback, load_issuers

MIN_SECRET_CHARACTERS = 32
_MIN_DISTINCT = 8
_PLACEHOLDERS = (
    "changeme",
    "change-me",
    "change_me",
    "your-secret",
    "your_secret",
    "secret-key",
    "secret_key",
)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """One field for each variable; `.env.example` documents them, and a test compares the two."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    web_concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"

    log_format: Literal["auto", "json", "text"] = "auto"
    otel_exporter_otlp_endpoint: str = ""
    otel_service_name: str = "sluicegate"
    otel_sdk_disabled: bool = False

    data_dir: Path = Path(".sluicegate")
    database_url: str = ""
    redis_url: str = "memory://"
    redis_timeout_seconds: Seconds = 0.25
    database_away: Literal["refuse", "spool"] = "refuse"
    spool_max_bytes: Annotated[int, Field(ge=1 << 16)] = 256 * 1024 * 1024
    redis_away: Literal["share", "closed", "open"] = "share"
    auto_migrate: bool = True
    retention_months: Annotated[int, Field(ge=0)] = 0

    secret_key: SecretStr = SecretStr("")
    secret_key_retired: SecretStr = SecretStr("")
    admin_email: str = "admin@localhost"
    admin_password: SecretStr = SecretStr("")

    issuers_file: Path | None = None
    cors_origins: str = ""
    trusted_proxies: str = ""

    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: str = ""
    anthropic_api_key: SecretStr = SecretStr("")
    anthropic_base_url: str = ""
    upstream_proxy: str = ""
    upstream_ca_file: Path | None = None
    upstream_metadata_hosts: bool = False
    default_model: str = ""

    export_url: str = ""
    export_secret: SecretStr = SecretStr("")
    export_token: SecretStr = SecretStr("")
    export_source: Annotated[str, Field(pattern=r"^[!-~]{1,200}$")] = "sluicegate"
    export_batch: Annotated[int, Field(ge=1, le=1000)] = 100
    export_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 15.0

    default_max_streams: Annotated[int, Field(ge=1)] = 20
    max_worker_streams: Annotated[int, Field(ge=0)] = 0
    budget_end: Literal["length", "error"] = "length"
    replay_max_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024
    max_body_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    heartbeat_seconds: Seconds = 15.0
    stream_seconds: Seconds = 600.0
    upstream_silence_seconds: Seconds = 120.0
    continuous_usage: bool = False
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    read_on_seconds: Seconds = 30.0
    read_on_tokens: Annotated[int, Field(ge=1)] = 4096
    read_on_streams: Annotated[int, Field(ge=1)] = 100
    send_seconds: Seconds = 30.0
    settle_seconds: Seconds = 5.0
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    lease_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 15.0
    tick_seconds: Seconds = 1.0

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        secret = self.secret_key.get_secret_value()
        if secret:
            _check_secret("SECRET_KEY", secret)
        for retired in self.retired_secrets:
            _check_secret("SECRET_KEY_RETIRED", retired)
        if secret and secret in self.retired_secrets:
            raise ValueError("SECRET_KEY is among SECRET_KEY_RETIRED")
        local = self.host == "localhost" or is_loopback(self.host.strip("[]"))
        if not secret and not local:
            raise ValueError(
                "without SECRET_KEY this is a demo, which binds to loopback only: "
                "set SECRET_KEY (e.g. `openssl rand -hex 32`) or HOST=127.0.0.1"
            )
        if self.web_concurrency > 1 and self.redis_url.startswith("memory://"):
            raise ValueError(
                "WEB_CONCURRENCY over 1 needs a REDIS_URL: workers with a memory of their own would each "
                "grant the whole cap"
            )
        if self.lease_seconds < 3 * self.tick_seconds:
            raise ValueError("LEASE_SECONDS must be at least three TICK_SECONDS, or a hiccup loses slots")
        for name in ("openai_base_url", "anthropic_base_url", "upstream_proxy"):
            url = getattr(self, name)
            if url and urlsplit(url).scheme not in {"http", "https"}:
                raise ValueError(f"{name.upper()} must begin with http:// or https://")
        if self.upstream_ca_file is not None and not self.upstream_ca_file.is_file():
            raise ValueError("UPSTREAM_CA_FILE is no file")
        return self

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str) -> str:
        parse_redis_url(url)
        return url

    @field_validator("export_url")
    @classmethod
    def _receiver(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("EXPORT_URL must begin with http:// or https://, and name a host")
        if "@" in parts.netloc:
            raise ValueError("EXPORT_URL must not hold a password: EXPORT_TOKEN is the place for it")
        return url

    @field_validator("export_secret")
    @classmethod
    def _signing_key(cls, secret: SecretStr) -> SecretStr:
        if secret.get_secret_value():
            try:
                signing_key(secret.get_secret_value())
            except ValueError as error:
                raise ValueError(f"EXPORT_SECRET: {error}") from None
        return secret

    @field_validator("export_token")
    @classmethod
    def _header(cls, token: SecretStr) -> SecretStr:
        if not token.get_secret_value().isascii() or not token.get_secret_value().isprintable():
            raise ValueError("EXPORT_TOKEN must be printable ASCII: it goes into a header")
        return token

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, text: str) -> str:
        for network in _words(text):
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError("TRUSTED_PROXIES must be addresses or networks, with commas") from None
        return text

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        for origin in _words(text):
            parts = urlsplit(origin)
            if origin != f"{parts.scheme}://{parts.netloc}" or parts.scheme not in {"http", "https"}:
                raise ValueError("CORS_ORIGINS must be origins such as https://app.example.com, with commas")
        return text

    @model_validator(mode="after")
    def _issuers_are_fine(self) -> Settings:
        self.issuers()
        return self

    def issuers(self) -> tuple[IssuerConfig, ...]:
        """The identity providers whose tokens are taken, read from ISSUERS_FILE."""
        if self.issuers_file is None:
            return ()
        try:
            return load_issuers(self.issuers_file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"ISSUERS_FILE cannot be read: {type(error).__name__}") from None
        except ValueError as error:
            raise ValueError(f"ISSUERS_FILE: {error}") from None

    @property
    def retired_secrets(self) -> tuple[str, ...]:
        """Former SECRET_KEYs whose tokens still hold."""
        return _words(self.secret_key_retired.get_secret_value())

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Origins whose pages may call."""
        return _words(self.cors_origins)

    @property
    def proxies(self) -> tuple[str, ...]:
        """Networks whose word for a client's address is taken."""
        return _words(self.trusted_proxies)

    @property
    def trusted_hosts(self) -> list[str]:
        """The same, IPv4 also as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""
        networks = [ipaddress.ip_network(network) for network in self.proxies]
        mapped = [
            f"::ffff:{network.network_address}/{96 + network.prefixlen}"
            for network in networks
            if isinstance(network, ipaddress.IPv4Network)
        ]
        return [*map(str, networks), *mapped]

    @property
    def demo(self) -> bool:
        """Whether the gateway makes its own secrets."""
        return not self.secret_key.get_secret_value()

    @property
    def scripted(self) -> bool:
        """Whether the scripted model answers, because no provider is configured."""
        keys = self.openai_api_key.get_secret_value() or self.anthropic_api_key.get_secret_value()
        return not (keys or self.openai_base_url or self.anthropic_base_url)

    @property
    def ledger_url(self) -> str:
        """The database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'sluicegate.db'}"

    @property
    def model_or_default(self) -> str:
        """The model of a `/chat/stream` request that names none."""
        return self.default_model or ("scripted" if self.scripted else "gpt-4o-mini")

    @property
    def spool_dir(self) -> Path:
        """Where the ledger's writes go while the database is away."""
        return self.data_dir / "spool"


def worker_name() -> str:
    """A name that no other process has, nor had: a container's process id is always the same."""
    return f"{socket.gethostname()[-80:]}:{os.getpid()}:{secrets.token_hex(4)}"


def _check_secret(name: str, secret: str) -> None:
    """Refuses what is short, and what somebody typed to get on: a placeholder, one key held down."""
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ValueError(f"{name} must have at least {MIN_SECRET_CHARACTERS} characters")
    if len(set(secret)) < _MIN_DISTINCT or any(word in secret.lower() for word in _PLACEHOLDERS):
        raise ValueError(f"{name} is easy to guess: make one with `openssl rand -hex 32`")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
