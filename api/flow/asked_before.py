"""Whether a request was made before: by its tenant, for its end user, with the same `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import msgspec

from api.errors import BadRequest, Conflict
from api.flow.keep_stream import Kept

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Order
    from auth.principal import Principal

_MOST_CHARACTERS = 255


async def keep(gate: Gate, caller: Principal, order: Order, key: str | None, path: str) -> str | None:
    """None where it was not: what it gets is kept from here on. Else the name under which it is kept.

    Raises BadRequest, Conflict where the key stood for another request, LimiterUnavailable: without Redis
    nobody knows, and a second bill is what the caller wanted to be safe from.
    """
    if key is None:
        return None
    if not (0 < len(key) <= _MOST_CHARACTERS and key.isascii() and key.isprintable()):
        raise BadRequest(f"`Idempotency-Key` must be 1 to {_MOST_CHARACTERS} printable ASCII characters.")
    asked = msgspec.json.encode([path, order.body, sorted(order.headers.items())])
    fingerprint = hashlib.sha256(asked).hexdigest().encode()
    tenant_id = caller.tenant_id or ""
    name = hashlib.sha256(f"{caller.end_user or ''}\0{key}".encode()).hexdigest()
    head = fingerprint + b" " + secrets.token_hex(8).encode()
    standing = await gate.replays.claim(tenant_id, name, head, gate.policy.lease_seconds)
    if standing is None:
        order.kept = Kept(tenant_id, name, head, caller.terms.resume_minutes)
        return None
    if standing.partition(b" ")[0] != fingerprint:
        raise Conflict("This `Idempotency-Key` stands for another request.", "idempotency_key_reused")
    return name
