"""REDIS_URL: what may stand in it, what is refused at start, and that nothing repeats its password."""

from __future__ import annotations

import pytest

from api.adapters.redis_connect import connect
from api.cli.app import _without_password
from api.redis_url import parse_redis_url
from api.settings import Settings

GOOD = {
    "memory://": ("memory", False, (), "", 0, {}, {}),
    "unix:///run/redis.sock?db=1": ("single", False, (), "", 0, {}, {}),
    "redis://:pw@h/0": ("single", False, (), "", 0, {}, {}),
    "redis+cluster://a:7000,b:7001": ("cluster", False, (("a", 7000), ("b", 7001)), "", 0, {}, {}),
    "rediss+cluster://u:p%40w%2F@a/0": (
        *("cluster", True, (("a", 6379),), "", 0),
        *({"username": "u", "password": "p@w/"}, {}),
    ),
    "redis+cluster://[::1]:7000,[::2]": ("cluster", False, (("::1", 7000), ("::2", 6379)), "", 0, {}, {}),
    "redis+sentinel://a,b:1/m": ("sentinel", False, (("a", 26379), ("b", 1)), "m", 0, {}, {}),
    "rediss+sentinel://:p@a/m/2?sentinel_password=q%26&sentinel_username=s": (
        *("sentinel", True, (("a", 26379),), "m", 2),
        *({"password": "p"}, {"username": "s", "password": "q&"}),
    ),
}

BAD = {
    "": "must begin with",
    "http://hush": "must begin with",
    "redis:/hush": "must begin with",
    "cluster://hush": "must begin with",
    "redis://:hush/hush@h": "port",
    "redis://:hush@h:hush": "port",
    "redis+cluster://": "hosts and ports",
    "redis+cluster://:hush@": "hosts and ports",
    "redis+cluster://a,,b": "hosts and ports",
    "redis+cluster://a:hush": "hosts and ports",
    "redis+cluster://a:0": "hosts and ports",
    "redis+cluster://a:65536": "hosts and ports",
    "redis+cluster://[::1]hush": "hosts and ports",
    "redis+cluster://a/1": "no database",
    "redis+cluster://a?hush=1": "option",
    "redis+cluster://a?ssl_ca_certs=hush": "option",
    "redis+cluster://:hush/hush@a": "no database",
    "redis+sentinel://a": "name the master",
    "redis+sentinel://a/": "name the master",
    "redis+sentinel:///m": "hosts and ports",
    "redis+sentinel://a/m/hush": "name the master",
    "redis+sentinel://a/m/1/2": "name the master",
    "redis+sentinel://a/m?password=hush": "option",
}


@pytest.mark.parametrize("url", GOOD)
def test_a_url_says_what_is_documented(url):
    """Hosts, ports and their defaults, logins decoded, the master, its database."""
    parsed = parse_redis_url(url)
    got = (parsed.kind, parsed.tls, parsed.hosts, parsed.master, parsed.database)
    assert (*got, parsed.login, parsed.sentinel_login) == GOOD[url]
    assert Settings(_env_file=None, redis_url=url).redis_url == url
    connect(url)


def test_tls_options_are_passed_on():
    """With the types that redis-py wants."""
    parsed = parse_redis_url("rediss+cluster://a?ssl_ca_certs=/ca.pem&ssl_check_hostname=no")
    assert parsed.ssl == {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    assert parse_redis_url("rediss+sentinel://a/m?ssl_check_hostname=yes").ssl == {"ssl_check_hostname": True}


@pytest.mark.parametrize("url", BAD)
def test_a_url_that_cannot_be_one_is_refused_at_start(url):
    """With what is expected, and without what was said: it may be half a password."""
    for use in (connect, lambda url: Settings(_env_file=None, redis_url=url)):
        with pytest.raises(ValueError, match=BAD[url]) as raised:
            use(url)
        assert "hush" not in str(raised.value)
        assert raised.value.__cause__ is None


def test_logins_do_not_show():
    """In a repr that ends up in a log."""
    url = "redis+sentinel://hush:hush@a/m?sentinel_password=hush"
    assert "hush" not in repr(parse_redis_url(url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h/0", "redis://h/0"),
        ("redis://u:hush@h/0", "redis://***@h/0"),
        ("redis://:hush/hush@h", "redis://***@h"),
        ("unix:///run/redis.sock?password=hush&db=1", "unix:///run/redis.sock?password=***&db=1"),
        ("redis+cluster://u:hush@a:1,b:2", "redis+cluster://***@a:1,b:2"),
        (
            "redis+sentinel://:hush@a:1,b:2/m/1?sentinel_password=hush",
            "redis+sentinel://***@a:1,b:2/m/1?sentinel_password=***",
        ),
    ],
)
def test_check_config_masks_passwords(url, shown):
    """Wherever they stand in a URL, however many hosts it has."""
    assert _without_password(url) == shown
