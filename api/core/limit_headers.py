"""What a caller is told of its limits in headers, of those that bind it the tightest.

`x-ratelimit-*` is OpenAI's; `RateLimit` and `RateLimit-Policy` are draft-ietf-httpapi-ratelimit-headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.core.demand import Shape
from api.core.demands import seconds_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.demand import Demand, State

# What is counted, by limit: its name in the IETF's headers, and its quota unit where that is not requests.
_NAMES = {
    "max_streams": ("streams", "concurrent-requests"),
    "requests_per_minute": ("requests", None),
    "tokens_per_minute": ("tokens", "tokens"),
    "tokens_per_day": ("tokens-day", "tokens"),
    "tokens_per_month": ("tokens-month", "tokens"),
    "nano_dollars_per_day": ("cost-day", "nano-dollars"),
    "nano_dollars_per_month": ("cost-month", "nano-dollars"),
    "tokens_in_all": ("allowance", "tokens"),
}
_OPENAI = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}
_WINDOW_SECONDS = {"minute": 60, "day": 86400, "month": 30 * 86400}


def limit_headers(demands: Sequence[Demand], states: Sequence[State]) -> dict[str, str]:
    """The headers, by name; none where nothing is known."""
    tightest: dict[str, tuple[Demand, State]] = {}
    for demand, state in zip(demands, states, strict=False):
        best = tightest.get(demand.name)
        if not demand.shadow and (best is None or state.remaining < best[1].remaining):
            tightest[demand.name] = (demand, state)
    if not tightest:
        return {}
    policies, limits, headers = [], [], {}
    for name, (demand, state) in tightest.items():
        word, unit = _NAMES[name]
        window = next((s for end, s in _WINDOW_SECONDS.items() if name.endswith(end)), None)
        policies.append(
            f'"{word}";q={demand.amount}'
            + (f";w={window}" if window else "")
            + (f';qu="{unit}"' if unit else "")
        )
        reset = _reset_seconds(demand, state)
        limits.append(f'"{word}";r={state.remaining}' + ("" if reset is None else f";t={reset}"))
        if name in _OPENAI:
            kind = _OPENAI[name]
            headers[f"x-ratelimit-limit-{kind}"] = str(demand.amount)
            headers[f"x-ratelimit-remaining-{kind}"] = str(state.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(state.reset_us)
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(limits), **headers}


def _reset_seconds(demand: Demand, state: State) -> int | None:
    if demand.shape is Shape.RATE:
        return -(-state.reset_us // 1_000_000)
    return seconds_left(demand)


def duration(micros: int) -> str:
    """As OpenAI writes it: `12ms`, `1.5s`, `6m0s`."""
    millis = -(-micros // 1000)
    if millis < 1000:  # noqa: PLR2004 - milliseconds of a second
        return f"{millis}ms"
    minutes, seconds = divmod(millis / 1000, 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{round(seconds, 3):g}s"
