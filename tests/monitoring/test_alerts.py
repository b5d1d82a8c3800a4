"""The alert rules: they name metrics and labels that exist, and each fires on its cause and only then."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from vllm_edit.serving.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "alerts.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")
PROMTOOL = shutil.which("promtool")
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def _read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def rules() -> list[dict[str, Any]]:
    (group,) = _read(RULES)["groups"]
    return group["rules"]  # type: ignore[no-any-return]


def promtool(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, cwd=folder)


def test_the_rules_name_metrics_and_labels_that_exist() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    labels = {
        f"{metric._name}{SUFFIX[metric._type]}": set(metric._labelnames)  # type: ignore[attr-defined]
        for metric in vars(metrics).values()
    }
    for rule in rules():
        named = re.findall(r"(vllm_edit_[a-z_]+)(?:\{([^}]*)\})?", rule["expr"])
        assert named, rule["alert"]
        for name, matchers in named:
            assert name in labels, rule["alert"]
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels[name], rule["alert"]


def test_the_outcomes_that_rules_match_are_exposed_before_they_happen() -> None:
    """`increase` of a series that begins with its first failure is 0: the first failure would raise no alert."""
    registry = CollectorRegistry()
    Metrics(registry)
    exposed = {
        (sample.name, sample.labels["outcome"])
        for family in registry.collect()
        for sample in family.samples
        if "outcome" in sample.labels
    }
    matched = {
        found for rule in rules() for found in re.findall(r"(vllm_edit_[a-z_]+)\{outcome=\"(\w+)\"\}", rule["expr"])
    }
    assert matched
    assert matched <= exposed


def test_each_alert_has_a_severity_a_text_and_a_case_where_it_fires() -> None:
    fired = {
        case["alertname"] for test in _read(CASES)["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_manual_lists_each_alert() -> None:
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(VLLMEdit\w+)` \|", page, re.MULTILINE) == [rule["alert"] for rule in rules()]


@needs_promtool
def test_prometheus_accepts_the_rules() -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


@needs_promtool
@pytest.mark.parametrize(
    ("healthy", "spoilt"), [("", ""), ("vllm_edit_registry_up == 0", "vllm_edit_registry_up == 1"), ("> 0.02", "> 0.2")]
)
def test_each_alert_fires_on_its_cause_and_only_then(healthy: str, spoilt: str, tmp_path: Path) -> None:
    """Spoilt rules fail: the cases can notice it."""
    (tmp_path / RULES.name).write_text(RULES.read_text(encoding="utf-8").replace(healthy, spoilt), encoding="utf-8")
    shutil.copy(CASES, tmp_path)
    tested = promtool("test", "rules", CASES.name, folder=tmp_path)
    assert (tested.returncode == 0) == (healthy == spoilt), tested.stdout + tested.stderr
