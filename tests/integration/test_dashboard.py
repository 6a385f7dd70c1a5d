"""The dashboard and the alert rules use what a daemon tells, and Grafana and Prometheus can read them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from pods.diagnosis.bulletin import NAMES

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana-dashboard.json"
RULES = Path(__file__).parents[2] / "deploy/prometheus-rules.yml"
FUNCTIONS = {"sum", "by", "rate", "increase", "histogram_quantile"}
PROMETHEUS = {"instance", "job"}  # labels that it adds itself


def _panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def _expressions() -> Iterator[tuple[str, str]]:
    for panel in _panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for rule in _rules():
        yield rule["alert"], rule["expr"]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def assert_shows_only(text: str) -> None:
    """Every metric and label of the dashboard is in that text of a daemon's /metrics."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        for kind in kinds:
            name = family.name + kind
            labels[name] = {label for one in family.samples if one.name == name for label in one.labels}
    for title, expression in _expressions():
        bare = re.sub(r'"[^"]*"|\[[^]]*\]|[0-9.]+', " ", expression)
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", bare))))
        selected = set(re.findall(r"(\w+)\s*=~?", bare))
        names = set(re.findall(r"[a-z_]\w*", bare)) - FUNCTIONS - grouped - selected
        assert names, title
        for name in names - {"up"}:  # Prometheus' own
            assert name in labels, f"{title}: no metric {name}"
            assert (grouped | selected) - PROMETHEUS <= labels[name], f"{title}: labels of {name}"


def test_grafana_can_draw_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource", "instance"]
    panels = _panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, rows = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        cells = set(itertools.product(columns, rows))
        assert not cells & taken, panel["title"]
        taken |= cells
    for title, expression in _expressions():
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right), title


def test_each_alert_names_causes_that_there_are() -> None:
    for rule in _rules():
        for wanted in re.findall(r'cause=~?"([^"]*)"', rule["expr"]):
            for name in wanted.split("|"):
                assert [one for one in NAMES if re.fullmatch(name, one)], f"{rule['alert']}: {name}"
        assert set(rule["annotations"]) == {"summary", "description"}
