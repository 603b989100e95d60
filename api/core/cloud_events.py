"""Usage events as CloudEvents 1.0 in JSON, batched, and signed as Standard Webhooks says.

An event's id is that of its row on the ledger, so whoever gets it twice can tell. The id of a batch is made
of its events' ids: the same events again are the same batch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api.core.record import UsageEvent

EVENT_TYPE = "sluicegate.usage.v1"
CONTENT_TYPE = "application/cloudevents-batch+json"
"""Without a `charset`: JSON is UTF-8, and OpenMeter compares it to the letter."""

SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64
"""As many as Standard Webhooks asks for."""

_NOT_SENT = frozenset({"id", "worker"})
"""The id stands outside of the data; which worker it was is an operator's matter."""


def cloud_event(event: UsageEvent, external_id: str | None, source: str) -> dict[str, Any]:
    """One event. `external_id` is its tenant's name in the company's own systems."""
    flat = event.flat()
    labels = {name: _plain(value) for name, value in flat.items() if name not in _NOT_SENT}
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": EVENT_TYPE,
        "subject": external_id or event.booking.tenant_id,
        "time": _rfc3339(event.booking.started_at),
        "datacontenttype": "application/json",
        "data": labels | {"external_id": external_id},
    }


def batch_of(events: Sequence[Mapping[str, Any]]) -> bytes:
    """The body of a request that carries them."""
    return json.dumps(list(events), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def batch_id(event_ids: Sequence[str]) -> str:
    """The id of the batch of these events, in this order."""
    return "msg_" + hashlib.sha256("\n".join(event_ids).encode()).hexdigest()[:32]


def signing_key(secret: str) -> bytes:
    """The key that a secret stands for: `whsec_` and base64, or plain text. Raises ValueError."""
    key = secret.encode()
    if secret.startswith(SECRET_PREFIX):
        text = secret.removeprefix(SECRET_PREFIX)
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"what follows `{SECRET_PREFIX}` must be base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"must have {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return key


def signed(body: bytes, *, message_id: str, unix_seconds: int, key: bytes | None) -> dict[str, str]:
    """The headers of Standard Webhooks; without a key there is no signature among them."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(unix_seconds)}
    if key is not None:
        content = f"{message_id}.{unix_seconds}.".encode() + body
        digest = hmac.new(key, content, hashlib.sha256).digest()
        headers["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
    return headers


def _plain(value: Any) -> Any:
    return _rfc3339(value) if isinstance(value, datetime) else value


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
