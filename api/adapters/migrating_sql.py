"""Steps of migrations on PostgreSQL that hold nobody up.

A lock that keeps others out is waited for half a second at most: whoever comes after it waits behind it. Then
everybody else has a turn, and it is asked for again. Every step can be done again after a kill.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

log = logging.getLogger("sluicegate.migrate")

LOCK_TIMEOUT = "500ms"
"""How long anybody may have to wait because a lock is waited for."""

_TRIES = 300
_PAUSE_SECONDS = 0.5


def is_refused(error: DBAPIError) -> bool:
    """Whether a lock was not to be had in time."""
    return getattr(error.orig, "sqlstate", None) == "55P03"  # lock_not_available


def alone(connection: Connection, statement: str) -> None:
    """One statement, as a transaction of its own: for an autocommit block."""

    def attempt() -> None:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        try:
            connection.execute(text(statement))
        finally:
            connection.execute(text("RESET lock_timeout"))

    _insist(attempt)


def together(connection: Connection, work: Callable[[], None]) -> None:
    """Several statements, or none of them, in a transaction that is to be committed right after this."""

    def attempt() -> None:
        with connection.begin_nested():
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            work()

    _insist(attempt)
    connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))


def _insist(attempt: Callable[[], None]) -> None:
    for left in reversed(range(_TRIES)):
        try:
            attempt()
        except DBAPIError as error:
            if not left or not is_refused(error):
                raise
            if left == _TRIES - 1:
                log.warning("a table is in use by a long transaction: asking for it again and again")
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def make_index(connection: Connection, name: str, on: str, *, unique: bool = False) -> None:
    """Beside all reading and writing: for an autocommit block. What a kill left invalid is made anew."""
    state = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    valid = connection.scalar(state, {"name": name})
    if valid:
        return
    if valid is False:
        connection.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
    kind = "UNIQUE INDEX" if unique else "INDEX"
    connection.execute(text(f"CREATE {kind} CONCURRENTLY {name} ON {on}"))
