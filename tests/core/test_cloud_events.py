"""CloudEvents: what a receiver gets of an event, under which id, and how it knows who sent it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import cloud_events
from api.core.booking import Correction, Ended, Happening
from api.core.delivery import (
    MAX_ATTEMPTS,
    MAX_WAIT_SECONDS,
    Verdict,
    pause_seconds,
    refused_seconds,
    retry_after,
    verdict_of,
)
from api.core.record import Booking, UsageEvent
from api.core.usage import Certainty, Source, Usage
from tests.support.servers import ROOT

CAME = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
BOOKING = Booking(
    id="bk_019cb7a1b2c3" + "0" * 20,
    request_id="req_1",
    tenant_id="tn_1",
    key_id="key1",
    token_id=None,
    end_user="Zoë\u2028",
    dialect="openai_chat",
    model="gpt-4o",
    upstream="openai",
    worker="host:1:ff",
    started_at=CAME,
)
EVENT = UsageEvent(
    booking=BOOKING,
    answered_model="gpt-4o-2024",
    usage=Usage(100, 20, 30, 5, Source.PROVIDER, Certainty.EXACT),
    ended=Ended.FINISHED,
    cause=Happening.TERMINAL,
    first_token_ms=120,
    duration_ms=900,
    ended_at=CAME + timedelta(milliseconds=900),
    cost_nano_dollars=12_345,
    price_version="3+1",
)


def test_an_event_says_all_that_the_ledger_knows_but_the_worker() -> None:
    """Under the names of CloudEvents 1.0, with the ledger's labels flat in `data`."""
    assert cloud_events.cloud_event(EVENT, "acme", "sluicegate") == {
        "specversion": "1.0",
        "id": BOOKING.id,
        "source": "sluicegate",
        "type": "sluicegate.usage.v1",
        "subject": "acme",
        "time": "2026-03-04T05:06:07.000089Z",
        "datacontenttype": "application/json",
        "data": {
            "tenant_id": "tn_1",
            "external_id": "acme",
            "key_id": "key1",
            "token_id": None,
            "end_user": "Zoë\u2028",
            "request_id": "req_1",
            "dialect": "openai_chat",
            "model": "gpt-4o",
            "answered_model": "gpt-4o-2024",
            "upstream": "openai",
            "input_tokens": 100,
            "cached_tokens": 30,
            "output_tokens": 20,
            "reasoning_tokens": 5,
            "source": "provider",
            "certainty": "exact",
            "tokenizer": None,
            "ended": "finished",
            "cause": "terminal",
            "corrects": None,
            "cost_nano_dollars": 12_345,
            "price_version": "3+1",
            "first_token_ms": 120,
            "duration_ms": 900,
            "started_at": "2026-03-04T05:06:07.000089Z",
            "ended_at": "2026-03-04T05:06:07.900089Z",
        },
    }


def test_a_tenant_without_an_external_id_goes_by_its_own() -> None:
    """A subject is never empty: OpenMeter requires one."""
    assert cloud_events.cloud_event(EVENT, None, "s")["subject"] == "tn_1"
    assert cloud_events.cloud_event(EVENT, None, "s")["data"]["external_id"] is None


def test_a_correction_has_an_id_of_its_own_and_names_what_it_corrects() -> None:
    """A receiver that drops ids it has seen must not drop a difference."""
    usage = Usage(-7, 2, 0, 0, Source.PROVIDER, Certainty.EXACT)
    late = UsageEvent(
        booking=BOOKING,
        answered_model="m",
        usage=usage,
        ended=Ended.FINISHED,
        cause=Correction.LATE_WORKER,
        first_token_ms=None,
        duration_ms=1,
        ended_at=CAME,
        cost_nano_dollars=-5,
        number=2,
    )
    sent = cloud_events.cloud_event(late, None, "s")
    assert (sent["id"], sent["data"]["corrects"]) == (f"{BOOKING.id}-2", BOOKING.id)
    assert (sent["data"]["input_tokens"], sent["data"]["cost_nano_dollars"]) == (-7, -5)
    assert sent["time"] == "2026-03-04T05:06:07.000089Z"


def test_times_are_utc_wherever_they_come_from() -> None:
    """RFC 3339 with a Z."""
    zone = timezone(timedelta(hours=5, minutes=30))
    flat = cloud_events._rfc3339(CAME.astimezone(zone))
    assert flat == "2026-03-04T05:06:07.000089Z"


def test_a_batch_is_a_json_array_in_utf_8() -> None:
    """As the batch format of CloudEvents has it; nothing in it can end it early."""
    events = [cloud_events.cloud_event(EVENT, name, "s") for name in ("a", 'b"]', "\U0001f600")]
    body = cloud_events.batch_of(events)
    assert json.loads(body.decode()) == events
    assert "Zoë".encode() in body
    assert cloud_events.CONTENT_TYPE == "application/cloudevents-batch+json"


@given(st.lists(st.text("0123456789abcdef_-", min_size=1), min_size=1, max_size=5))
def test_the_same_events_are_the_same_batch_and_others_are_another(ids: list[str]) -> None:
    """Its id depends on the events' ids and their order, on nothing else; and has no full stop in it."""
    name = cloud_events.batch_id(ids)
    assert name == cloud_events.batch_id(list(ids))
    assert name != cloud_events.batch_id([*ids, "x"])
    assert name != cloud_events.batch_id([ids[0] + "0", *ids[1:]])
    assert "." not in name


def test_a_signature_is_the_one_of_standard_webhooks() -> None:
    """A vector from the reference implementation's tests, and HMAC-SHA256 by hand."""
    key = cloud_events.signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = cloud_events.signed(
        b'{"test": 2432232314}',
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        unix_seconds=1614265330,
        key=key,
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    plain = cloud_events.signing_key("a plain text of some length")
    made = hmac.new(b"a plain text of some length", b"msg_1.7.[]", hashlib.sha256).digest()
    signed = cloud_events.signed(b"[]", message_id="msg_1", unix_seconds=7, key=plain)
    assert signed["webhook-signature"] == "v1," + base64.b64encode(made).decode()
    unsigned = cloud_events.signed(b"[]", message_id="msg_1", unix_seconds=7, key=None)
    assert unsigned == {"webhook-id": "msg_1", "webhook-timestamp": "7"}


def test_the_check_of_the_documentation_works() -> None:
    """Whoever copies the lines of docs/export.md takes what is ours, and nothing else."""
    text = (ROOT / "docs/export.md").read_text()
    lines = text.partition("```python\n")[2].partition("```")[0]
    secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY="
    known: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time, "SECRET": secret}
    exec(lines, known)
    now = int(time.time())
    key = cloud_events.signing_key(secret)
    headers = cloud_events.signed(b"[]", message_id="msg_1", unix_seconds=now, key=key)
    assert known["is_ours"](headers, b"[]")
    assert not known["is_ours"](headers, b"[1]")
    assert not known["is_ours"](headers | {"webhook-id": "msg_2"}, b"[]")
    old = cloud_events.signed(b"[]", message_id="msg_1", unix_seconds=now - 600, key=key)
    assert not known["is_ours"](old, b"[]")


@pytest.mark.parametrize(
    "secret", ["", "short", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64 at all, by no means!", "x" * 65]
)
def test_secrets_that_are_none_are_refused(secret: str) -> None:
    """Too short to be safe, too long for the standard, or not what the prefix says."""
    with pytest.raises(ValueError, match="must"):
        cloud_events.signing_key(secret)


# --- what an answer means -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "statuses"),
    [
        (Verdict.TAKEN, (200, 201, 202, 204, 299)),
        (Verdict.REFUSED, (400, 406, 409, 413, 418, 422, 451, 499)),
        (Verdict.AWAY, (None, 408, 425, 429, 500, 502, 503, 504, 599)),
        (Verdict.MISCONFIGURED, (301, 302, 304, 307, 308, 401, 402, 403, 404, 405, 407, 410, 415)),
    ],
)
def test_each_status_says_whose_fault_it_is(verdict: Verdict, statuses: tuple[int | None, ...]) -> None:
    """Only what a single event can be guilty of is held against events."""
    assert {verdict_of(status) for status in statuses} == {verdict}


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1))
def test_waits_grow_and_are_bounded(failures: int, jitter: float) -> None:
    """From half a second to five minutes; two gates do not come back at the same moment."""
    wait = pause_seconds(failures, None, jitter)
    assert 0.5 <= wait <= 300
    assert wait <= pause_seconds(failures + 1, None, 1.0)
    assert pause_seconds(failures, None, 0.0) < pause_seconds(failures, None, 1.0)


@given(failures=st.integers(1, 20), asked=st.floats(0, 1e12))
def test_a_receiver_that_says_how_long_is_left_alone_so_long(failures: int, asked: float) -> None:
    """An hour at most, and never asked at once, whatever it says."""
    wait = pause_seconds(failures, asked, 0.5)
    assert 0.5 <= wait <= MAX_WAIT_SECONDS
    assert wait >= min(asked, MAX_WAIT_SECONDS)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("86400", MAX_WAIT_SECONDS),
        ("9" * 400, MAX_WAIT_SECONDS),
        ("Wed, 04 Mar 2026 12:00:30 GMT", 30),
        ("Wed, 04 Mar 2026 11:00:00 GMT", 0),
        ("Wed, 04 Mar 2027 12:00:00 GMT", MAX_WAIT_SECONDS),
        ("", None),
        (None, None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("Wed, 99 Mar 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """Nonsense is as if it were not there."""
    assert retry_after(value, NOW) == seconds


def test_an_event_is_not_given_up_within_minutes() -> None:
    """A receiver that was badly deployed for ten minutes costs nobody a dead letter."""
    assert sum(refused_seconds(attempts) for attempts in range(1, MAX_ATTEMPTS)) > 600
    assert refused_seconds(10_000) == refused_seconds(MAX_ATTEMPTS) < 3600
