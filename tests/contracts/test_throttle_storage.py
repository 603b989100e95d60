"""Throttles count on every kind of Redis, for all workers together, and without it each for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from limits.storage import storage_from_string
from redis.exceptions import RedisClusterException, RedisError

from api.routes.throttle_storage import storage_of
from api.routes.throttles import throttle
from tests.support.redis_servers import MASTER, RedisSentinel
from tests.support.servers import RedisServer, free_port, running

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["memory", "unix", "redis", "cluster", "sentinel"])
def test_two_workers_count_together(kind, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What one counted the other sees; in memory there is but one."""
    if kind == "unix":
        server = RedisServer("--unixsocket", str(tmp_path / "redis.sock"))
        with running(server):
            server.start()
            counts_together(f"unix://{tmp_path / 'redis.sock'}")
    elif kind == "memory":
        uri, options = storage_of("memory://")
        assert storage_from_string(uri, **options).incr("k", 60) == 1
    elif kind == "redis":
        counts_together(request.getfixturevalue("redis_url"))
    else:
        counts_together(request.getfixturevalue(f"redis_{kind}").url)


def counts_together(url: str) -> None:
    """Two storages on one Redis."""
    uri, options = storage_of(url)
    one, other = (storage_from_string(uri, **options) for _ in range(2))
    assert one.check()
    assert [one.incr("k", 60), other.incr("k", 60), one.incr("k2", 60)] == [1, 2, 1]
    assert (one.get("k"), other.get("k2")) == (2, 1)
    assert one.get_expiry("k") > 0
    one.clear("k")
    assert other.get("k") == 0
    other.reset()
    assert one.get("k2") == 0
    for storage in (one, other):
        close(storage)


def close(storage: object) -> None:
    """Its connections."""
    storage = getattr(storage, "_opened", None) or storage
    storage.storage.close()
    if hasattr(storage, "sentinel"):
        storage.storage_slave.close()
        for sentinel in storage.sentinel.sentinels:
            sentinel.close()


def test_sentinels_are_told_their_own_password_and_the_master_its_own() -> None:
    """Neither gets the other's."""
    with running(RedisSentinel()) as server:
        server.start()
        for one in (server.master, server.replica):
            with one.client() as client:
                client.config_set("masterauth", "for/redis")
                client.config_set("requirepass", "for/redis")
        with server.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "SET", MASTER, "auth-pass", "for/redis")
        counts_together(server.url.replace("://", "://:for%2Fredis@"))  # the sentinel wants none
        with server.sentinels[0].client() as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">for it")
        counts_together(server.url.replace("://", "://:for%2Fredis@") + "?sentinel_password=for+it")


@pytest.mark.parametrize(
    "form", ["redis+cluster://:hush@127.0.0.1:{}", "redis+sentinel://:hush@127.0.0.1:{}/m"]
)
def test_a_gateway_starts_without_its_redis(form) -> None:
    """The storage is made, says that it is not there when asked, and tells nobody the password."""
    url = form.format(free_port())
    assert throttle(url) is not None
    uri, options = storage_of(url)
    assert "hush" not in uri
    storage = storage_from_string(uri, **options)
    with pytest.raises((RedisError, RedisClusterException)) as raised:
        storage.incr("k", 60)
    if hasattr(storage, "sentinel"):
        assert "hush" not in str(storage.sentinel.sentinel_kwargs)
    assert "hush" not in str(raised.value)
