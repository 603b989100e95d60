"""All that is counted of a tenant, in Redis and in a `Book`, in one form; and a clock for the Lua."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from api.core.limits import _Budget

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from api.adapters.limiter_redis import Script
    from api.core.demand import Held
    from api.core.limits import Book

_TIME = "redis.call('TIME')"


def retime(script: Script) -> None:
    """Let the Lua take the time from the hash `clock`; otherwise the text is the product's."""
    assert script.text.count(_TIME) == 1
    script.text = script.text.replace(_TIME, "redis.call('HMGET', 'clock', 's', 'us')")
    script._sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


def in_book(book: Book) -> dict[str, Any]:
    """All that a book knows; what is empty is as if it were not there."""
    return {
        "slots": {counter: dict(members) for counter, members in book.slots.items() if members},
        "debts": dict(book.debts),
        "budgets": {
            name: (one.spent, one.reserved, one.late)
            for name, one in book.budgets.items()
            if one != _Budget(asked_at=one.asked_at)
        },
        "held": {permit: _flat(held) for permit, held in book.held.items()},
        "lapsed": {permit: _flat(held) for permit, held in book.lapsed.items()},
        "waiting": [(permit, *place) for permit, place in book.waiting.items()],
        "shadow": dict(book.would_refuse),
        "pace": (book._freed_at, book._gap_us),
        "known": book._known_from,
    }


def _flat(held: Held) -> Any:
    return held.tokens, held.told, {name: (row.reserved, row.used) for name, row in held.rows.items()}


async def in_redis(client: Redis, tenant: str = "tn_a") -> dict[str, Any]:
    """The same of a tenant in Redis."""
    prefix = f"sg:{{{tenant}}}:"
    names = sorted(str(_text(key)).removeprefix(prefix) for key in await client.keys("sg:*"))
    pipe = client.pipeline(transaction=False)
    for name in names:
        if name.startswith("streams") or name in {"waiting", "waiting:until"}:
            pipe.zrange(prefix + name, 0, -1, withscores=True)
        elif name == "known" or name.startswith("lapsed:"):
            pipe.get(prefix + name)
        else:
            pipe.hgetall(prefix + name)
    found = {name: _text(value) for name, value in zip(names, await pipe.execute(), strict=True)}
    pace, known = found.pop("pace", {}), found.pop("known", None)
    waiting = dict(found.pop("waiting", ()))
    counters, leases = found.pop("waiting:for", {}), dict(found.pop("waiting:until", ()))
    assert len(waiting) == len(counters) == len(leases)
    assert _whole(found.pop("waiting:n", {})) == Counter(counters.values())
    everything: dict[str, Any] = {
        "slots": {},
        "debts": {},
        "budgets": {},
        "held": {permit: _unpacked(held) for permit, held in found.pop("held", {}).items()},
        "lapsed": {},
        "waiting": [(permit, counters[permit], leases[permit], ticket) for permit, ticket in waiting.items()],
        "shadow": _whole(found.pop("shadow", {})),
        "pace": (_number(pace.get("at")), _number(pace.get("gap"))),
        "known": _number(known),
    }
    for name, value in found.items():
        if name.startswith("streams"):
            everything["slots"][name] = dict(value)
        elif name.startswith("lapsed:"):
            everything["lapsed"][name.removeprefix("lapsed:")] = _unpacked(value)
        elif "debt" in value:
            everything["debts"][name] = (int(value["debt"]), int(value["at"]))
        else:
            budget = _whole(value)
            counts = (budget.get("spent"), budget.get("reserved", 0), budget.get("late"))
            if counts != (None, 0, None):
                everything["budgets"][name] = counts
    return everything


def _text(value: Any) -> Any:
    """Names as text, numbers as they are."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(key): _text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [(_text(member), int(score)) for member, score in value]
    return value


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _whole(hash_: dict[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in hash_.items()}


def _unpacked(packed: str) -> Any:
    head, *rows = packed.split("\n")
    cells = [row.split("\t") for row in rows]
    return (
        int(head.rstrip("*")),
        head.endswith("*"),
        {name: (int(reserved), int(used)) for name, reserved, used in cells},
    )
