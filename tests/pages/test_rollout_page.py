"""The page of a rollout: arms, shares, comparisons with their course, and warnings."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

from tests.pages.examples import Parsed, problems
from tests.rollout.example import rollout
from vllm_edit.pages.report_pages import rollout_page
from vllm_edit.rollout.decided import Decision
from vllm_edit.rollout.guardrails import Evidence, judge
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Observed, Traffic
from vllm_edit.rollout.rollout_report import RolloutReport, report
from vllm_edit.rollout.schedule import parse_schedule

SOLVED, RATING = Metric("solved", 0, 1), Metric("rating", 1, 5)


def found(outcomes: int, name: str = "spring") -> RolloutReport:
    """Treatment never solves, control always does; nobody rates."""
    one = rollout(12.5, name=name, metrics=(SOLVED, RATING), overrides={"<b>ann</b>": "treatment"})
    observed = [Observed("treatment" if number % 2 else "control", float(1 - number % 2)) for number in range(outcomes)]
    traffic = {
        "control": Traffic(outcomes, outcomes // 2, 3, 700, 90, [0.125, 0.25]),
        "treatment": Traffic(outcomes, outcomes // 2, 1, 800, 95, [0.5]),
    }
    return report(one, traffic, Evidence(outcomes={"solved": observed}))  # type: ignore[arg-type]


def test_the_page_is_one_valid_file_with_and_without_outcomes() -> None:
    assert problems(rollout_page(found(200))) == []
    assert problems(rollout_page(found(0))) == []
    assert problems(rollout_page(report(rollout(), {}, Evidence()))) == []


def test_every_value_of_the_report_is_on_the_page() -> None:
    made = found(200)
    text = Parsed.of(rollout_page(made)).text
    result, unrated = made.comparisons
    assert (result.verdict, unrated.verdict) == ("worse", "open")
    assert f"decided after {result.decided_at} users" in text
    assert f"{result.difference.mean:.4g}, 97.5 % interval at every look {result.difference.low:.4g}" in text
    assert "On rating, nothing is compared yet." in text
    assert "12.5 % of the users take part, 50 % of them on treatment" in text
    assert f"Control is {made.rollout.control}, treatment is {made.rollout.treatment}." in text
    for warning in made.warnings:
        assert warning in text
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", rollout_page(made))
    place = cells.index("treatment", cells.index("95 % s"))
    assert cells[place : place + 8] == ["treatment", "200", "100", "1", "800", "95", "0.5", "0.5"]
    shares = cells.index("treatment", cells.index("fixed users"))
    assert cells[shares : shares + 5] == ["treatment", "100", "50.00 %", "50 %", "1"]
    assert f"(e-value): {made.imbalance:.3g}" in text


def test_the_course_and_the_means_are_drawn_for_each_metric() -> None:
    page = rollout_page(found(200))
    shown = dict(re.findall(r"<desc id=\"([\w-]+)\">([^<]*)</desc>", page))
    assert shown["rollout-course-0-text"].startswith("users of both arms: -1 (")
    assert shown["rollout-course-0-text"].endswith(f"decided after {found(200).comparisons[0].decided_at}")
    assert shown["rollout-course-1-text"] == "users of both arms: nothing is compared yet"
    assert shown["rollout-mean-0-text"].startswith("control: 1 (")


def test_names_of_users_are_not_shown() -> None:
    assert "ann" not in Parsed.of(rollout_page(found(2))).text.split()
    assert "&lt;b&gt;" not in rollout_page(found(2))


def test_limits_the_schedule_and_what_servers_did_are_on_the_page() -> None:
    limits = (parse_limit("errors=kill"), parse_limit("solved+0.5=pause"))
    made = rollout(12.5, metrics=(SOLVED,), limits=limits)
    made = replace(made, schedule=parse_schedule("1% 1h, 10%").begun(datetime(2026, 5, 4, tzinfo=UTC)))
    observed = [Observed("treatment" if number % 2 else "control", float(1 - number % 2)) for number in range(200)]
    evidence = Evidence(outcomes={"solved": observed})
    (_, exceeded) = judge(made, evidence)
    decision = Decision(exceeded, datetime(2026, 5, 4, 7, tzinfo=UTC), "node-a:1")
    page = rollout_page(report(made, {}, evidence, [decision], "node-a:1"))
    assert problems(page) == []
    text = Parsed.of(page).text
    assert "Ramp schedule 1% 1h, 10%: 10 % from 2026-05-04 01:00:00 UTC." in text
    assert "Limit solved+0.5=pause was exceeded on 2026-05-04 07:00:00 UTC, and node-a:1 acted: pause." in text
    assert exceeded.summary in text
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page)
    place = cells.index("errors=kill")
    assert (cells[place + 7], cells[place + 15]) == ("holds", "acted")
