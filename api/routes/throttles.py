"""Throttles of the sign-in and token routes, by slowapi: per client address, and per account.

slowapi asks its storage synchronously, so a throttle is a plain `def` dependency, which FastAPI runs in a
thread: the event loop never waits for it. If Redis is away each worker counts for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded

from api.deps import Anyone
from api.routes.throttle_storage import storage_of
from auth.dependencies import address_of
from auth.door import household

if TYPE_CHECKING:
    from collections.abc import Callable


def throttle(storage_url: str) -> Limiter:
    """Slowapi's limiter on that Redis, or in memory."""
    uri, options = storage_of(storage_url)
    return Limiter(
        key_func=_household_of,
        storage_uri=uri,
        in_memory_fallback_enabled=True,
        storage_options=options,
    )


def _household_of(request: Request) -> str:
    return household(address_of(request))


def _account_of(request: Request) -> str:
    account: str = request.state.account
    return account


def by_address(limiter: Limiter, rate: str, name: str) -> Any:
    """At most `rate` ("10/minute") calls from one address; `name` is the counter's."""
    return Depends(_limited(limiter, rate, f"{name}_address", _household_of))


def by_account(limiter: Limiter, rate: str, name: str, account: Callable[..., Any]) -> Any:
    """At most `rate` calls for one account, which the dependency `account` puts into the request's state."""
    limited = _limited(limiter, rate, f"{name}_account", _account_of)

    def check(request: Request, _account: Any = Depends(account)) -> None:  # noqa: B008 - FastAPI's way
        limited(request)

    return Depends(check)


async def _caller(request: Request, caller: Anyone) -> None:
    request.state.account = caller.key_id or caller.token_id


def by_caller(limiter: Limiter, rate: str, name: str) -> Any:
    """At most `rate` calls for one key, or one token."""
    return by_account(limiter, rate, name, _caller)


def _limited(
    limiter: Limiter, rate: str, name: str, key: Callable[[Request], str]
) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        """Refused by slowapi before this runs."""

    check.__name__ = name  # what slowapi counts by
    limited: Callable[[Request], None] = limiter.limit(rate, key_func=key)(check)

    def twice(request: Request) -> None:
        """When Redis falls silent slowapi raises for all but the first that notice; then it counts here."""
        request.state._rate_limiting_complete = False  # noqa: SLF001 - else only a request's first limit counts
        try:
            limited(request)
        except RateLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - whatever its storage raises
            limited(request)

    return twice
