"""Anthropic's own API, and servers that are compatible with it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from anthropic import AsyncAnthropic

from api.adapters.upstream_http import PLACEHOLDER, HttpUpstream, Line, Recorder

if TYPE_CHECKING:
    from api.adapters.upstream_http import Prepared

_MOST_MODELS = 1000  # the API's own bound of a page


class AnthropicUpstream(HttpUpstream):
    """One endpoint. `base_url` None is Anthropic's own; it has no `/v1` at its end."""

    def __init__(self, name: str, *, api_key: str, base_url: str | None, line: Line) -> None:
        super().__init__(name, api_key, line)
        self._base_url = base_url

    async def _ask_sdk(self, what: str, model: str) -> Prepared:
        recorder = Recorder()
        sdk = AsyncAnthropic(api_key=PLACEHOLDER, base_url=self._base_url, http_client=recorder.client)
        async with sdk:
            if what == "models":
                await sdk.models.with_raw_response.list(limit=_MOST_MODELS)
            else:
                await sdk.messages.with_raw_response.create(model=model, max_tokens=1, messages=[])
        return recorder.prepared(self._line.proxy)

    def _listed(self, body: bytes) -> bytes:
        found = msgspec.json.decode(body)
        models = [
            {
                "id": model["id"],
                "object": "model",
                "created": int(datetime.fromisoformat(model["created_at"]).timestamp()),
                "owned_by": "anthropic",
            }
            for model in found.get("data", [])
        ]
        return msgspec.json.encode({"object": "list", "data": models})
