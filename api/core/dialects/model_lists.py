"""Lists of models: OpenAI's, and Anthropic's made of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec


def as_anthropic(body: bytes) -> bytes:
    """Anthropic's list of the same models, all on one page. What cannot be read passes as it is."""
    found = _data(body)
    if found is None:
        return body
    models = [
        {
            "type": "model",
            "id": model["id"],
            "display_name": model["id"],
            "created_at": datetime.fromtimestamp(model.get("created") or 0, UTC).isoformat(),
        }
        for model in found
    ]
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return msgspec.json.encode({"data": models, "has_more": False, "first_id": first, "last_id": last})


def only(body: bytes) -> bytes | None:
    """The one model of a list of either shape; None where there is none."""
    found = _data(body)
    return msgspec.json.encode(found[0]) if found else None


def _data(body: bytes) -> list[dict[str, Any]] | None:
    try:
        found = msgspec.json.decode(body)["data"]
        return found if all(isinstance(model["id"], str) for model in found) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None
