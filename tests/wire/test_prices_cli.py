"""`sluicegate prices` for people and for programs: both kinds of files, what was a slip, and long work."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from api.adapters.database_sql import WRITES, open_engine
from api.adapters.ledger_writes_sql import append
from api.cli import prices
from api.core.ids import sortable_id
from tests.contracts.helpers import START, booking, event
from tests.wire.commands import Done, fine, new_tenant, sluicegate, told

if TYPE_CHECKING:
    from pathlib import Path

LIST = {
    "gpt-4o-mini": {"input": "0.15", "cached_input": "0.075", "output": 0.6},
    "gpt-4o*": {"input": 2.5, "output": 10},
}
LITELLM = {
    "sample_spec": {"mode": "one of: chat"},
    "gpt-4o-mini": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07},
    "gemini": {
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06,
        "input_cost_per_token_above_200k_tokens": 2e-06,
    },
    "dall-e-3": {"output_cost_per_image": 0.04},
}
MARCH = ("--from", "2026-03-01", "--to", "2026-04-01")


@pytest.fixture
def file(office: Path) -> Path:
    """A price list of two."""
    path = office / "prices.json"
    path.write_text(json.dumps(LIST))
    return path


def words(text: str) -> list[list[str]]:
    """A table's cells, of what has no spaces in it."""
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


def requests(office: Path, count: int, cost: int = 7) -> None:
    """What so many requests of March used, on the ledger."""

    async def write() -> None:
        engine = open_engine(f"sqlite:///{office / 'sluicegate.db'}")
        made = (sortable_id("bk_", int(START.timestamp() * 1000), n.to_bytes(10)) for n in range(count))
        bookings = [booking(id=one, started_at=START, model="gpt-4o-mini", tenant_id="tn_a") for one in made]
        async with engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                events = [event(one, cost_nano_dollars=cost, price_version="1") for one in bookings]
                await append(connection, events, exports=False)
        await engine.dispose()

    asyncio.run(write())


# --- the list ---------------------------------------------------------------------------------------


def test_a_list_is_imported_and_shown(file: Path) -> None:
    """A dry run says what would be done; the same list again adds nothing; all versions stay."""
    tried = fine("prices", "import", str(file), "--dry-run")
    assert tried.startswith("Would add 2 prices, valid from ")
    assert [row["model"] for row in told("prices", "list")] == ["scripted*"]
    text = fine("prices", "import", str(file), "--valid-from", "2026-04-01")
    assert words(text) == [
        ["Added 2 prices, valid from 2026-04-01 00:00:00 UTC; 0 hold already."],
        ["model", "input", "cached input", "output", "reasoning"],
        ["gpt-4o*", "2.5", "2.5", "10", "10"],
        ["gpt-4o-mini", "0.15", "0.075", "0.6", "0.6"],
        *([["Requests that were charged already keep their price. Next: sluicegate prices reprice"]] * ago()),
    ]
    again = told("prices", "import", str(file), "--valid-from", "2026-04-01T00:00:00")
    assert (again["changes"], again["unchanged"], again["dry_run"]) == ([], 2, False)
    listed = told("prices", "list", "--at", "2026-04-01")
    assert [(row["model"], row["input"], row["output"]) for row in listed] == [
        ("gpt-4o*", "2.5", "10"),
        ("gpt-4o-mini", "0.15", "0.6"),
        ("scripted*", "1", "2"),
    ]
    assert listed[0]["created_by"].startswith("cli:")
    assert [row["model"] for row in told("prices", "list", "--at", "2026-03-31T23:59:59Z")] == ["scripted*"]
    mini = words(fine("prices", "list", "--at", "2026-04-01T02:00:00+02:00", "--model", "gpt-4o-mini-2"))
    assert [row[1] for row in mini] == ["model", "gpt-4o*"]
    assert [row["version"] for row in told("prices", "list", "--history")] == [3, 2, 1]
    assert [row["version"] for row in told("prices", "list", "--history", "--model", "scripted")] == [1]
    assert "No price holds" in fine("prices", "list", "--at", "1999-01-01")


def ago() -> bool:
    """Whether April of 2026 is over."""
    return datetime.now(UTC) > datetime(2026, 4, 1, tzinfo=UTC)


def test_litellms_list_is_imported(office: Path) -> None:
    """From standard input; what was left out, and what costs more for long prompts, is said."""
    text = fine("prices", "import", "-", stdin=json.dumps(LITELLM))
    assert text.startswith("Added 2 prices")
    assert "1 entries without a price for tokens were left out." in text
    assert "1 of the file cost more for long prompts" in text
    assert "reprice" not in text
    done = told("prices", "import", "-", stdin=json.dumps(LITELLM))
    assert (done["changes"], done["unchanged"], done["left_out"], done["tiered"]) == ([], 2, 1, 1)


def test_a_changed_price_is_shown_with_what_it_was(file: Path) -> None:
    """What stays is said once; of a long list the beginning is shown."""
    fine("prices", "import", str(file))
    file.write_text(json.dumps({"gpt-4o-mini": {"input": "0.2", "cached_input": "0.075", "output": "0.6"}}))
    assert words(fine("prices", "import", str(file)))[2] == [
        "gpt-4o-mini",
        "0.15 -> 0.2",
        "0.075",
        "0.6",
        "0.6",
    ]
    file.write_text(json.dumps({f"m{n:02d}": {"input": 1, "output": 1} for n in range(25)}))
    lines = fine("prices", "import", str(file)).splitlines()
    assert (len(lines), lines[-1]) == (23, "... and 5 more")


WRONG_LISTS = {
    "": "is not JSON",
    "{": "is not JSON",
    "[]": "must be an object",
    "{}": "has no price of any model",
    '{"m": {"input": 1}}': "m: needs `input` and `output`",
    '{"m": {"input": 1, "output": -1}}': "m: `output` must be dollars per million tokens",
    '{"m": {"input": 1, "output": 1e400}}': "m: `output` must be dollars per million tokens",
    '{"m": {"litellm_provider": "x", "input_cost_per_token": 2, "output_cost_per_token": 0}}': (
        "m: `input_cost_per_token` must be dollars per token"
    ),
    '{"\\ud800": {"input": 1}}': "a name has 1 to 256 characters",
}


@pytest.mark.parametrize("text", WRONG_LISTS, ids=range(len(WRONG_LISTS)))
def test_a_list_that_is_none_is_wrong_usage(office: Path, text: str) -> None:
    """Status 2, and a word that says where it is wrong; nothing is imported."""
    refused(sluicegate("prices", "import", "-", stdin=text), WRONG_LISTS[text])
    assert told("audit") == []


def refused(done: Done, *said: str) -> None:
    """Status 2 and those words, wherever the terminal broke the line; no traceback."""
    assert (done.status, done.out) == (2, "")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.err).split())
    assert all(word in text for word in said), text
    assert "Traceback" not in text


def test_a_file_that_cannot_be_read_is_wrong_usage(office: Path) -> None:
    """None that is there, none that is text, and a directory."""
    (office / "odd.json").write_bytes(b'{"m\xff": 1}')
    refused(sluicegate("prices", "import", "odd.json"), "is not UTF-8")
    refused(sluicegate("prices", "import", "nowhere.json"), "No such file")
    refused(sluicegate("prices", "import", "."), "directory")


# --- markups ----------------------------------------------------------------------------------------


def test_a_markup_is_set_and_shown(office: Path) -> None:
    """In per cent with two decimals, above nothing or below."""
    tenant = new_tenant()
    assert fine("prices", "markups") == "No markups yet.\n"
    text = fine("prices", "markup", tenant, "--percent", "20.25", "--valid-from", "2026-04-01")
    assert text == f"{tenant} pays 20.25% on top from 2026-04-01 00:00:00 UTC on.\n"
    for percent, points in (("-100", -10_000), ("1000", 100_000), ("-.5", -50), ("0", 0)):
        assert told("prices", "markup", tenant, "--percent", percent)["basis_points"] == points
    rows = words(fine("prices", "markups", "--tenant", tenant))
    assert [row[3] for row in rows] == ["percent", "0.00%", "-0.50%", "1000.00%", "-100.00%", "20.25%"]
    assert told("prices", "markups", "--tenant", new_tenant()) == []


@pytest.mark.parametrize(
    "percent", ["", "x", "-100.01", "1000.01", "0.001", "NaN", "Infinity", "1e999999999", "1e-999999", "20%"]
)
def test_a_percentage_that_is_none_is_wrong_usage(office: Path, percent: str) -> None:
    """From -100 to 1000, two decimals; whatever else is written, in bounded time."""
    refused(sluicegate("prices", "markup", "tn_no", "--percent", percent), "--percent is from -100 to 1000")


@pytest.mark.parametrize(
    "arguments",
    [
        ("markup", "tn_no", "--percent", "5"),
        ("markups", "--tenant", "tn_no"),
        ("reprice", *MARCH, "--tenant", "tn_no"),
    ],
)
def test_a_tenant_that_is_not_there_is_one_line(office: Path, arguments: tuple[str, ...]) -> None:
    """Status 1, and nothing in the audit log."""
    done = sluicegate("prices", *arguments)
    assert (done.status, done.out, done.err) == (1, "", "No tenant has the id `tn_no`.\n")
    assert told("audit") == []


# --- repricing --------------------------------------------------------------------------------------


def test_a_period_is_repriced(file: Path) -> None:
    """What it would come to, what it came to, and that nothing is left to do; corrections and no changes."""
    fine("prices", "import", str(file), "--valid-from", "2026-03-01")
    requests(file.parent, 3)
    cost = 8 * 150 + 3 * 75 + 13 * 600
    sum_of_three = f"+0.0000{3 * (cost - 7):05d} dollars"
    said = f"3 requests, {{}}: 3, {sum_of_three}; 0 without a price.\n"
    assert fine("prices", "reprice", *MARCH, "--dry-run") == said.format("to correct")
    assert fine("prices", "reprice", *MARCH) == said.format("corrected")
    assert fine("prices", "reprice", *MARCH) == "3 requests, corrected: 0, +0 dollars; 0 without a price.\n"
    [entry] = told("audit", "--action", "price.reprice")
    assert entry["details"]["from"] == "2026-03-01T00:00:00+00:00"
    fine(
        "prices",
        "import",
        "-",
        "--valid-from",
        "2026-03-02",
        stdin='{"gpt-4o-mini": {"input": 0, "output": 0}}',
    )
    assert f": 3, -0.0000{3 * cost:05d} dollars;" in fine("prices", "reprice", *MARCH)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/events"])
def test_corrections_are_exported_where_events_are(
    file: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """By the same settings as those of the gateway."""
    monkeypatch.setenv("EXPORT_URL", url)
    monkeypatch.setenv("EXPORT_SECRET", "7c0ffee5ab1e7c0ffee5ab1e7c0ffee5" if url else "")
    fine("prices", "import", str(file), "--valid-from", "2026-03-01")
    requests(file.parent, 2)
    fine("prices", "reprice", *MARCH)
    with closing(sqlite3.connect(file.parent / "sluicegate.db")) as database:
        [(waiting,)] = database.execute("SELECT count(*) FROM outbox").fetchall()
    assert waiting == (2 if url else 0)


def test_long_work_says_how_far_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, page by page, so that a program's answer is one line all the same."""
    fine("prices", "import", str(file), "--valid-from", "2026-03-01")
    requests(file.parent, 501)
    monkeypatch.setattr(prices, "_PROGRESS_SECONDS", 0.0)
    done = sluicegate("prices", "reprice", *MARCH, "--dry-run", "--json")
    assert (done.status, json.loads(done.out)["corrected"]) == (0, 501)
    assert re.fullmatch(r"500 requests looked at: 500, \+0\.\d+ dollars; 0 without a price\.\n", done.err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("reprice", "--from", "2026-03-01"), "--to"),
        (("reprice", "--from", "2026-03-01", "--to", "2026-03-01"), "--to must be after --from"),
        (("reprice", "--from", "yesterday", "--to", "2026-03-01"), "takes a date such as"),
        (("reprice", "--from", "0001-01-01T00:00:00+2359", "--to", "2026-03-01"), "--from takes a date"),
        (("list", "--history", "--at", "2026-03-01"), "leave out --at"),
        (("list", "--at", "soon"), "takes a date such as"),
        (("import",), "file"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(office: Path, arguments: tuple[str, ...], said: str) -> None:
    """Status 2, before the database is asked."""
    refused(sluicegate("prices", *arguments), said)
    assert told("audit") == []
