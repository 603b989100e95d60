"""What the ledger says of a chaos run, held against the upstream's truth and what the clients heard.

The upstream counts what it sends, by the label of each request; the label stands in the model's name, and so
in the event too. Nothing here reads a clock or asks a server.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOO_MANY, _UNAVAILABLE = 429, 503
INTERVAL_SECONDS = 1.0
"""What the death of a worker may lose (P3)."""
_CONTINUOUS = 2


class Heard(NamedTuple):
    """What a client got. `finished`: all of an answer, up to its last word.

    `marks`: (when, tokens got by then) of the last seconds, in order.
    """

    label: str
    kind: str
    dialect: str
    status: int
    tokens: int
    finished: bool
    failed: bool  # an error event came
    usage: int  # how the script reports it
    marks: list[tuple[float, int]]

    def got_at(self, token: int) -> float:
        """When a token, counted from 0, was there."""
        position = bisect_right(self.marks, token, key=lambda mark: mark[1])
        return self.marks[position][0] if position < len(self.marks) else float("inf")


class Truth(NamedTuple):
    """What the upstream did under a label."""

    opened: int
    live: int
    refused: int
    tokens_sent: int
    input_tokens: int
    reported: tuple[int, int] | None

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Truth:
        """From the upstream's own words."""
        values = {name: stats[name] for name in cls._fields}
        reported = stats["reported"]
        return cls(**values | {"reported": None if reported is None else tuple(reported)})


@dataclass
class Entry:
    """A booking's events, added up; the last of them says how sure they are, and how it ended."""

    label: str
    worker: str
    tenant_id: str
    input_tokens: int = 0
    output_tokens: int = 0
    source: str = ""
    certainty: str = ""
    ended: str = ""
    cause: str = ""
    events: int = 0
    corrections: int = 0
    lost_at: float | None = None  # Unix seconds, when it was closed in its dead worker's place

    @property
    def lost(self) -> bool:
        """Whether its worker died, and never said more."""
        return self.ended == "lost"


def entries_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Entry]:
    """By label, from rows of the ledger in the order of their ids."""
    found: dict[str, Entry] = {}
    for row in rows:
        label = label_of(row["model"])
        entry = found.setdefault(label, Entry(label, row["worker"], row["tenant_id"]))
        entry.input_tokens += row["input_tokens"]
        entry.output_tokens += row["output_tokens"]
        entry.events += row["corrects"] is None
        entry.corrections += row["corrects"] is not None
        entry.source, entry.certainty = str(row["source"]), str(row["certainty"])
        entry.ended, entry.cause = str(row["ended"]), str(row["cause"])
        if row["ended"] == "lost":
            entry.lost_at = row["ended_at"].timestamp()
    return found


def label_of(model: str) -> str:
    """The label in a scripted model's name."""
    return model.partition("label=")[2].partition("&")[0]


class Kill(NamedTuple):
    """A worker that was killed: how its name begins, and when, in monotonic and in Unix seconds."""

    worker: str
    at: float
    unix: float


class Loss(NamedTuple):
    """What the ledger does not know of a stream whose worker was killed."""

    label: str
    sent: int  # tokens of the upstream
    got: int  # those that its client had
    seconds: float  # from when the client had the first of them to the kill


@dataclass
class Findings:
    """Figures, and each promise with what broke it."""

    exact_events: int = 0
    exact_ledger: int = 0
    exact_truth: int = 0
    at_least_events: int = 0
    at_least_ledger: int = 0
    at_least_truth: int = 0
    early: dict[str, int] = field(default_factory=dict)
    """Stopped early, exact by the last of the reports in each chunk that came: tokens sent behind that."""
    corrections: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    closed_seconds: list[float] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    promises: dict[str, list[str]] = field(default_factory=dict)


ONE_EVENT = "every request that the upstream saw has one event, or delivered nothing and was not booked"
NO_OTHERS = "nothing that the upstream never saw has output, and nobody who was refused has an event"
EXACT = "each exact event is what the upstream says, to the token; stopped early, what it had said so far"
AT_LEAST = "each other event is no more than was sent, and no less than was received"
LOST = f"what SIGKILL lost was received in the last {INTERVAL_SECONDS:g} s before it"
ONLY_KILLED = "nothing is lost but with a worker that was killed"
FINISHED = "whoever got the last word of an answer has an event that is finished"
CLOSED = "the upstream has no stream open"


class Audit:
    """Looks at all requests once. `slack_seconds` is how long a checkpoint may take to be on the disk."""

    def __init__(self, kills: Iterable[Kill], *, slack_seconds: float) -> None:
        self._kills = list(kills)
        self._most_seconds = INTERVAL_SECONDS + slack_seconds
        self.findings = Findings()
        names = (ONE_EVENT, NO_OTHERS, EXACT, AT_LEAST, LOST, ONLY_KILLED, FINISHED, CLOSED)
        self._broken = self.findings.promises = {name: [] for name in names}

    def look(
        self, heard: Mapping[str, Heard], truths: Mapping[str, Truth], entries: Mapping[str, Entry]
    ) -> Findings:
        """All promises, over all labels that anybody knows."""
        for label in sorted({*heard, *truths, *entries}):
            self._one(label, heard.get(label), truths.get(label), entries.get(label))
        return self.findings

    def _say(self, promise: str, label: str, what: str, *more: object) -> None:
        self._broken[promise].append(f"{label}: {what}  {' '.join(map(str, more))}")

    def _one(self, label: str, heard: Heard | None, truth: Truth | None, entry: Entry | None) -> None:
        if truth is not None:
            if truth.opened != 1:
                self._say(ONE_EVENT, label, f"asked {truth.opened} times of the upstream", truth)
            if truth.live:
                self._say(CLOSED, label, "open", truth)
        if entry is None:
            if heard is not None and (heard.tokens or heard.finished):
                self._say(ONE_EVENT, label, "delivered, and not on the ledger", heard, truth)
            return
        if entry.events != 1:
            self._say(ONE_EVENT, label, f"{entry.events} events", entry)
        self._count(entry)
        if heard is not None and heard.finished and entry.ended != "finished":
            self._say(FINISHED, label, f"its event says {entry.ended}", entry)
        if truth is None:
            if entry.output_tokens or not _may_be_booked(heard, entry):
                self._say(NO_OTHERS, label, "the upstream never saw it", entry, heard)
            return
        self._sums(heard, truth, entry)

    def _count(self, entry: Entry) -> None:
        findings = self.findings
        findings.ended[entry.ended] = findings.ended.get(entry.ended, 0) + 1
        findings.corrections += entry.corrections

    def _sums(self, heard: Heard | None, truth: Truth, entry: Entry) -> None:
        findings = self.findings
        if entry.certainty == "exact":
            self._exact(heard, truth, entry)
        else:
            findings.at_least_events += 1
            findings.at_least_ledger += entry.output_tokens
            findings.at_least_truth += truth.tokens_sent
            more_input = truth.input_tokens and entry.input_tokens > truth.input_tokens
            if entry.output_tokens > truth.tokens_sent or more_input:
                self._say(AT_LEAST, entry.label, "more than was sent", entry, truth)
            received = heard.tokens if heard is not None and not entry.lost else 0
            if entry.output_tokens < received:
                self._say(AT_LEAST, entry.label, "less than was received", entry, heard)
        if entry.lost_at is not None:
            self._lost(heard, truth, entry, entry.lost_at)

    def _exact(self, heard: Heard | None, truth: Truth, entry: Entry) -> None:
        findings, said = self.findings, (entry.input_tokens, entry.output_tokens)
        continuous = heard is not None and heard.usage == _CONTINUOUS
        if continuous and entry.source == "provider" and entry.ended != "finished":
            # The last report that was read; what was on the wire behind it nobody can know.
            findings.early[entry.label] = truth.tokens_sent - entry.output_tokens
            received = heard.tokens if heard is not None else 0
            if entry.input_tokens != truth.input_tokens:
                self._say(EXACT, entry.label, "other input than was reported", entry, truth)
            if not received <= entry.output_tokens <= truth.tokens_sent:
                self._say(EXACT, entry.label, "less than received or more than sent", entry, truth, heard)
            return
        findings.exact_events += 1
        findings.exact_ledger += entry.output_tokens
        findings.exact_truth += truth.tokens_sent
        wanted = truth.reported if entry.source == "provider" else (truth.input_tokens, truth.tokens_sent)
        if said != wanted or entry.output_tokens != truth.tokens_sent:
            self._say(EXACT, entry.label, f"the truth is {wanted}", entry, truth)

    def _lost(self, heard: Heard | None, truth: Truth, entry: Entry, lost_at: float) -> None:
        kills = [kill for kill in self._kills if entry.worker.startswith(kill.worker)]
        if not entry.lost:  # its worker came back, and has said what it knew
            return
        if not kills:
            self._say(ONLY_KILLED, entry.label, "nobody killed its worker", entry)
            return
        kill = kills[0]
        self.findings.closed_seconds.append(lost_at - kill.unix)
        sent, got, seconds = truth.tokens_sent - entry.output_tokens, 0, 0.0
        if heard is not None:
            got = max(0, heard.tokens - entry.output_tokens)
            seconds = max(0.0, kill.at - heard.got_at(entry.output_tokens))
        self.findings.losses.append(Loss(entry.label, sent, got, seconds))
        if seconds > self._most_seconds:
            self._say(LOST, entry.label, f"{got} tokens, the first {seconds:.2f} s before", entry, heard)


def _may_be_booked(heard: Heard | None, entry: Entry) -> bool:
    """An event without the upstream: of a stream that ended before it was called, or while it was."""
    if heard is None or heard.status == 0:
        return True
    return heard.status != _TOO_MANY and (heard.status != _UNAVAILABLE or entry.cause == "gate_failed")
