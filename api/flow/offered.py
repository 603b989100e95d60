"""Which models a tenant may ask for, in OpenAI's shape."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from api.ports import UpstreamFailed

if TYPE_CHECKING:
    from api.flow.gate import Gate


async def offered(gate: Gate, tenant_id: str) -> bytes:
    """The catalog's names; while it has none, what the environment's upstreams say. Raises UpstreamFailed."""
    catalog = gate.providers.catalog
    if not catalog.empty:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "sluicegate"}
            for name in catalog.names(tenant_id)
        ]
        return msgspec.json.encode({"object": "list", "data": models})
    asked = [provider.upstream.models() for provider in gate.providers.fixed.values()]
    if len(asked) == 1:
        return await asked[0]
    lists = [one for one in await asyncio.gather(*asked, return_exceptions=True) if isinstance(one, bytes)]
    if not lists:
        raise UpstreamFailed("The providers could not be reached.")
    data = [model for one in lists for model in msgspec.json.decode(one)["data"]]
    return msgspec.json.encode({"object": "list", "data": data})
