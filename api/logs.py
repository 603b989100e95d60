"""Logs: one JSON object a line, with the id of the request; for people on a terminal, text.

Content and credentials are in no message. What libraries say through `logging` goes the same way.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

from api.edge import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from api.settings import Settings


def set_up(settings: Settings) -> None:
    """From here on everything that this process logs looks so."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shown: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _with_request_id,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shown],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = settings.log_level.upper()
    root.setLevel("WARNING" if level == "INFO" else level)  # libraries have much to say
    for name in ("sluicegate", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)


def _with_request_id(_logger: object, _name: str, said: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = REQUEST_ID.get()
    if request_id:
        said["request_id"] = request_id
    return said
