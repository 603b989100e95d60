"""CSV of any length: page by page, so that memory is bounded by one page, however slow the reader is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from api.core.csv_text import csv_text
from api.ports import LedgerUnavailable
from auth.dependencies import still_holds
from auth.principal import NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    Rows = Sequence[Sequence[Any]]

log = logging.getLogger("sluicegate.usage")

MEDIA_TYPE = "text/csv"
PAGE_ROWS = 250
"""Few enough that nobody else waits while they are written out."""


def wants_csv(request: Request, asked: str | None) -> bool:
    """By `format=`, else by what the client accepts."""
    accepted = request.headers.get("accept", "")
    return asked == "csv" or (asked is None and MEDIA_TYPE in accepted and "json" not in accepted)


class CsvAnswer(StreamingResponse):
    """All pages. One that cannot be read breaks the answer off: it does not end as if it were whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        except (LedgerUnavailable, NotAuthenticated) as error:
            log.warning("a CSV answer is broken off: %s", type(error).__name__)
            scope["state"]["connection"].abort()


async def csv_answer(
    request: Request, name: str, head: Sequence[str], pages: AsyncIterator[Rows]
) -> CsvAnswer:
    """An answer that begins when the first page is there: until then it can be an error like any other."""
    first = await anext(pages)

    async def texts() -> AsyncIterator[str]:
        yield csv_text([head, *first])
        async for rows in pages:
            await still_holds(request)  # a key may be revoked while somebody reads on (P9)
            if rows:
                yield csv_text(rows)

    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return CsvAnswer(texts(), media_type=f"{MEDIA_TYPE}; charset=utf-8; header=present", headers=headers)
