"""What callers are told of their limits: the tightest of each kind, as OpenAI and the IETF write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.demand import Demand, Shape, State
from api.core.limit_headers import duration, limit_headers
from auth.principal import LIMITS

_SHAPES = {"max_streams": Shape.CAP, "requests_per_minute": Shape.RATE, "tokens_per_minute": Shape.RATE}


def demand(name: str, amount: int, *, of: str = "tenant", shadow: bool = False, left: int = 0) -> Demand:
    """A demand of a limit; `left` is how long a budget's period goes on."""
    shape = _SHAPES.get(name, Shape.BUDGET)
    return Demand(shape, f"{name}:{of}", amount, 1, 1, left + 86400, shadow, of, name)


def test_rates_are_told_as_openai_tells_them_and_all_limits_as_the_draft_does() -> None:
    """Amount, what is left and when all of it is there again; a window and a unit where there is one."""
    demands = (
        demand("max_streams", 5),
        demand("requests_per_minute", 60),
        demand("tokens_per_minute", 1000),
        demand("tokens_per_day", 5000, left=3600),
        demand("nano_dollars_per_month", 9, left=7200),
    )
    states = (State(4), State(59, 1_000_000), State(800, 12_000_001), State(4800), State(0))
    assert limit_headers(demands, states) == {
        "ratelimit-policy": '"streams";q=5;qu="concurrent-requests", "requests";q=60;w=60, '
        '"tokens";q=1000;w=60;qu="tokens", "tokens-day";q=5000;w=86400;qu="tokens", '
        '"cost-month";q=9;w=2592000;qu="nano-dollars"',
        "ratelimit": '"streams";r=4, "requests";r=59;t=1, "tokens";r=800;t=13, "tokens-day";r=4800;t=3600, '
        '"cost-month";r=0;t=7200',
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "800",
        "x-ratelimit-reset-tokens": "12.001s",
    }


def test_of_several_limits_of_one_kind_the_tightest_is_told() -> None:
    """A key's own, where it binds more; of equals the tenant's, which comes first."""
    demands = [demand("requests_per_minute", amount, of=of) for amount, of in ((60, "tenant"), (20, "key"))]
    assert limit_headers(demands, (State(30), State(9)))["x-ratelimit-limit-requests"] == "20"
    assert limit_headers(demands, (State(8), State(9)))["x-ratelimit-limit-requests"] == "60"
    assert limit_headers(demands, (State(9), State(9)))["x-ratelimit-limit-requests"] == "60"


def test_what_does_not_bind_is_not_told() -> None:
    """Limits in shadow; and of what nobody knows, nothing."""
    shadow = demand("tokens_per_day", 5, shadow=True)
    assert limit_headers((shadow,), (State(0),)) == {}
    assert limit_headers((demand("max_streams", 5),), ()) == {}
    told = limit_headers((shadow, demand("tokens_per_day", 9, left=1)), (State(0), State(7)))
    assert told["ratelimit"] == '"tokens-day";r=7;t=1'


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_a_name_in_the_headers(name) -> None:
    """As a structured field: a quoted name and parameters, integers all of them but the unit."""
    told = limit_headers((demand(name, 7),), (State(3, 5),))
    assert re.fullmatch(r'"[a-z-]+"(;[qw]=\d+)+(;qu="[a-z-]+")?', told["ratelimit-policy"])
    assert re.fullmatch(r'"[a-z-]+";r=3(;t=\d+)?', told["ratelimit"])


def test_an_allowance_does_not_come_back() -> None:
    """So it is not said when."""
    allowance = demand("tokens_in_all", 7)._replace(keep_seconds=7200)
    assert limit_headers((allowance,), (State(3),))["ratelimit"] == '"allowance";r=3'


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (12_000, "12ms"),
        (999_000, "999ms"),
        (999_001, "1s"),
        (1_500_000, "1.5s"),
        (59_999_000, "59.999s"),
        (60_000_000, "1m0s"),
        (83_250_000, "1m23.25s"),
        (360_000_000, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(micros, text) -> None:
    """Milliseconds, seconds, minutes: its SDKs' users parse them."""
    assert duration(micros) == text


@given(micros=st.integers(0, 10**13))
def test_a_duration_is_rounded_up_to_a_millisecond(micros) -> None:
    """Who waits as long as it says does not come too early, nor wait for longer."""
    parts = re.fullmatch(r"(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", duration(micros))
    assert parts is not None
    minutes, seconds, millis = parts.groups()
    told = int(minutes or 0) * 60_000 + round(float(seconds or 0) * 1000) + int(millis or 0)
    assert 0 <= told * 1000 - micros < 1000
