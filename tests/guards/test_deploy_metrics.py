"""The dashboard and the alerts ask for metrics that there are, and the runbook knows each alert."""

from __future__ import annotations

import json
import re

import pytest

from api.core.numbers import METRICS
from tests.support.servers import ROOT

DASHBOARD = ROOT / "deploy/grafana/sluicegate.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
NAMES = {f"sluicegate_{name}{end}": m for name, m in METRICS.items() for end in SUFFIXES[m.kind]}
EXPRESSIONS = [
    target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
] + re.findall(r"expr: '(.*)'", ALERTS.read_text())


def test_there_are_expressions():
    """A guard that looks at nothing is green for ever."""
    assert len(EXPRESSIONS) > 30


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_that_there_are(expression):
    """A renamed metric, or a label that it never had, is an empty panel and an alert that never comes."""
    named = re.findall(r"sluicegate_\w+", expression)
    assert named
    for name in named:
        assert name in NAMES
    labels = {label for name in named for label in NAMES[name].labels} | {"le"}
    asked = re.findall(r"(\w+)(?:=~|!=|=)\"", expression)
    asked += [word.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for word in by.split(",")]
    assert set(asked) <= labels


def test_every_metric_is_on_the_dashboard():
    """What is counted is shown."""
    shown = " ".join(EXPRESSIONS)
    assert [name for name in METRICS if f"sluicegate_{name}" not in shown] == []


def test_the_runbook_has_every_alert_and_no_other():
    """Whoever is woken finds what to do by the alert's name."""
    alerts = re.findall(r"alert: (\w+)", ALERTS.read_text())
    told = re.findall(r"^### (Sluicegate\w+)", (ROOT / "docs/operate.md").read_text(), re.MULTILINE)
    assert sorted(alerts) == sorted(told)
    assert len(alerts) > 5
