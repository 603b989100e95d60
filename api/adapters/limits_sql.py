"""Limits as their JSON columns hold them: amounts by name, and under `shadow` the names that only count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auth.principal import LIMITS, Limit

if TYPE_CHECKING:
    from collections.abc import Mapping

SHADOW = "shadow"
COLUMNS = frozenset({"limits", "end_user_limits"})
"""Columns that a patch is merged into, and does not replace."""


def merged(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396: what is null goes, what is left out stays. `shadow` is replaced; an empty one is none."""
    both = {**stored, **patch}
    names = [*(name for name in LIMITS if name in both), *(name for name in both if name not in LIMITS)]
    kept = {name: both[name] for name in names if both[name] is not None}
    if SHADOW in kept:
        kept[SHADOW] = list(kept[SHADOW])
    return {name: value for name, value in kept.items() if value != []}


def merged_columns(row: Mapping[Any, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values to set in a row, its limits merged with those that it has."""
    return {name: merged(row[name], value) if name in COLUMNS else value for name, value in values.items()}


def limits_of(kind: str, id_: str, stored: Mapping[str, Any]) -> tuple[Limit, ...]:
    """What binds the tenant, key or end user of that id, in the order of LIMITS."""
    shadow = stored.get(SHADOW, ())
    return tuple(Limit(kind, id_, stored[name], name, name in shadow) for name in LIMITS if name in stored)


def streams_in_shadow(stored: Mapping[str, Any]) -> bool:
    """Whether the cap on streams, which has a column of its own, only counts."""
    return "max_streams" in stored.get(SHADOW, ())
