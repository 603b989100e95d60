"""The options of `tenant` and `key` that set limits, and limits as a person reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.adapters.limits_sql import SHADOW
from auth.principal import LIMITS

if TYPE_CHECKING:
    from collections.abc import Mapping

NONE = "none"
"""The word for taking something away."""

Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=AMOUNT", help="E.g. tokens_per_minute=100000; `none` takes it away; repeatable."
    ),
]
EndUserLimit = Annotated[
    list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="The same, for each of its end users.")
]
Shadow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="A limit that only counts what it would refuse; repeatable; `none` for no limit."
    ),
]
EndUserShadow = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="The same, for limits of its end users.")
]
Queue = Annotated[
    int | None, typer.Option(help="So many requests over a limit may wait for their turn; 0 for none.")
]
QueueSeconds = Annotated[int | None, typer.Option(help="So long each of them waits at most.")]
Weight = Annotated[int | None, typer.Option(help="Its share of a worker that is full, beside others'.")]


def given(option: str, limits: list[str] | None, shadow: list[str] | None) -> dict[str, Any]:
    """Limits as the API takes them, from what was said on the command line; nothing where nothing was."""
    found: dict[str, Any] = {}
    for entry in limits or ():
        name, equals, amount = entry.partition("=")
        if not equals or name == SHADOW:
            raise typer.BadParameter(f"{option} takes NAME=AMOUNT")
        found[name] = None if amount == NONE else _whole(amount, entry, option)
    if shadow:
        found[SHADOW] = [] if shadow == [NONE] else shadow
    return found


def _whole(amount: str, entry: str, option: str) -> int:
    try:
        return int(amount)
    except ValueError:
        raise typer.BadParameter(f"{option} {entry}: the amount is a whole number, or `{NONE}`") from None


def text(limits: Mapping[str, Any], max_streams: int | None = None) -> str:
    """Limits on one line; with the cap on streams where it has a column of its own."""
    amounts = {**limits} if max_streams is None else {"max_streams": max_streams, **limits}
    shadow = limits.get(SHADOW, ())
    known = [name for name in LIMITS if name in amounts or name in shadow]
    return ", ".join(
        f"{name}={amounts.get(name, NONE)}{' (shadow)' if name in shadow else ''}" for name in known
    )
