"""What a REDIS_URL says: one Redis, a Redis Cluster, or a master that sentinels name.

No error says what stands in the URL: there is a password in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = "memory, redis, rediss, unix, redis+cluster, rediss+cluster, redis+sentinel or rediss+sentinel"
CLUSTER = "redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT"
SENTINEL = "redis+sentinel://[USER:PASSWORD@]HOST:26379,HOST:26379/MASTER_NAME[/DB]"

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_SENTINEL = ("sentinel_username", "sentinel_password")
_MAX_PORT = 65535


@dataclass(frozen=True)
class RedisUrl:
    """A REDIS_URL taken apart. For `memory` and `single` only `kind` says anything."""

    kind: Literal["memory", "single", "cluster", "sentinel"]
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    master: str = ""
    database: int = 0
    login: dict[str, str] = field(default_factory=dict, repr=False)
    """Username and password of the Redis servers, where there are any."""
    sentinel_login: dict[str, str] = field(default_factory=dict, repr=False)
    """The same, of the sentinels."""
    ssl: dict[str, str | bool] = field(default_factory=dict)
    """The `ssl_...` options of redis-py."""


def parse_redis_url(url: str) -> RedisUrl:
    """Raises ValueError with what is expected."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES.replace(" or", ",").split(", "):
        raise ValueError(f"REDIS_URL must begin with one of {SCHEMES}, and ://")
    if scheme == "memory":
        return RedisUrl("memory")
    if "+" not in scheme:
        _check_single(url)
        return RedisUrl("single")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, places = authority.rpartition("@")
    security, _, kind = scheme.partition("+")
    tls = security == "rediss"
    options, ssl = _options(query, kind, tls)
    username, _, password = userinfo.partition(":")
    login = _login(unquote(username), unquote(password))
    if kind == "cluster":
        if path not in {"", "0"}:
            raise ValueError(f"REDIS_URL: a Redis Cluster has no database but 0: {CLUSTER}")
        return RedisUrl("cluster", tls, _hosts(places, 6379, CLUSTER), login=login, ssl=ssl)
    master, _, database = path.partition("/")
    if not master or "/" in database or (database and not (database.isascii() and database.isdigit())):
        raise ValueError(f"REDIS_URL must name the master, and its database by number: {SENTINEL}")
    return RedisUrl(
        "sentinel",
        tls,
        _hosts(places, 26379, SENTINEL),
        unquote(master),
        int(database or 0),
        login,
        _login(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
        ssl,
    )


def _check_single(url: str) -> None:
    try:
        urlsplit(url).port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError(
            "REDIS_URL: its port is no number from 0 to 65535 "
            "(a / or @ in the password is written as %2F or %40)"
        ) from None


def _hosts(places: str, port: int, form: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for place in places.split(","):
        if place.startswith("["):  # an IPv6 address
            host, _, after = place[1:].partition("]")
        else:
            host, colon, after = place.partition(":")
            after = colon + after
        number = after.removeprefix(":") if after else str(port)
        fine = host and (not after or after.startswith(":")) and number.isascii() and number.isdigit()
        if not fine or not 0 < int(number) <= _MAX_PORT:
            raise ValueError(f"REDIS_URL must name hosts and ports, with commas: {form}")
        hosts.append((host, int(number)))
    return tuple(hosts)


def _options(query: str, kind: str, tls: bool) -> tuple[dict[str, str], dict[str, str | bool]]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = [*(_SENTINEL if kind == "sentinel" else ())]
    allowed += [*_TLS_FILES, "ssl_check_hostname"] if tls else []
    if options.keys() - set(allowed):
        known = f"none but {', '.join(allowed)}" if allowed else "none"
        raise ValueError(f"REDIS_URL has an option after ? that this kind of URL does not take: {known}")
    ssl: dict[str, str | bool] = {name: value for name, value in options.items() if name in _TLS_FILES}
    if "ssl_check_hostname" in options:
        ssl["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in {
            "0",
            "f",
            "false",
            "n",
            "no",
        }
    return options, ssl


def _login(username: str, password: str) -> dict[str, str]:
    both = {"username": username, "password": password}
    return {name: value for name, value in both.items() if value}
