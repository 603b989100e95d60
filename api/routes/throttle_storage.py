"""Where slowapi counts: a REDIS_URL in the words of its library `limits`, which knows other options."""

from __future__ import annotations

from threading import Lock
from typing import Any

from limits.storage import RedisClusterStorage
from limits.storage.base import Storage
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

from api.redis_url import parse_redis_url

_TIMEOUTS = {"socket_timeout": 0.25, "socket_connect_timeout": 0.25}
_NO_LOGIN = {"username": None, "password": None}


def storage_of(redis_url: str) -> tuple[str, dict[str, Any]]:
    """What slowapi wants to be told: the storage's URI, and its options with the passwords."""
    url = parse_redis_url(redis_url)
    if url.kind == "memory":
        return redis_url, {}
    if url.kind == "single":
        return (f"redis+{redis_url}" if redis_url.startswith("unix://") else redis_url), dict(_TIMEOUTS)
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in url.hosts)
    common: dict[str, Any] = {**_TIMEOUTS, **url.ssl, "retry": Retry(NoBackoff(), 1)}
    if url.tls:
        common["ssl"] = True
    if url.kind == "cluster":
        return f"late+redis+cluster://{hosts}", {**common, **url.login}
    return f"redis+sentinel://{hosts}/{url.master}", {
        **common,
        **url.login,
        "db": url.database,
        "use_replicas": False,
        # `limits` would tell the sentinels the password of the Redis servers.
        "sentinel_kwargs": {**common, **_NO_LOGIN, **url.sentinel_login},
    }


class LateClusterStorage(Storage):
    """A Redis Cluster that is connected to when it is first needed: a gateway may start before its Redis."""

    STORAGE_SCHEME = ["late+redis+cluster"]  # noqa: RUF012 - as `limits` has it

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions)
        self._uri = uri.removeprefix("late+")
        self._options = options
        self._opened: RedisClusterStorage | None = None
        self._opening = Lock()

    def _storage(self) -> RedisClusterStorage:
        with self._opening:
            if self._opened is None:
                self._opened = RedisClusterStorage(self._uri, **self._options)
            return self._opened

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """What it raises when it is away."""
        return (RedisError, RedisClusterException)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count."""
        return self._storage().incr(key, expiry, amount)

    def get(self, key: str) -> int:
        """The count."""
        return self._storage().get(key)

    def get_expiry(self, key: str) -> float:
        """When counting begins anew."""
        return self._storage().get_expiry(key)

    def check(self) -> bool:
        """Whether it is there."""
        return self._storage().check()

    def reset(self) -> int | None:
        """Forget all counts."""
        return self._storage().reset()

    def clear(self, key: str) -> None:
        """Forget one."""
        self._storage().clear(key)
