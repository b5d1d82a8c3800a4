"""Whole pages: of an evaluation, of a rollout, and of a store with everything that is recorded in it."""

from __future__ import annotations

from vllm_edit.evaluation.report import Report
from vllm_edit.pages.evaluation_part import evaluation_part, title_of
from vllm_edit.pages.page import render
from vllm_edit.pages.rollout_part import rollout_part
from vllm_edit.pages.store_part import StorePart
from vllm_edit.rollout.rollout_report import RolloutReport


def evaluation_page(report: Report) -> str:
    """The HTML page of an evaluation."""
    return render("evaluation", title=title_of(report), part=evaluation_part(report, "evaluation"))


def rollout_page(found: RolloutReport) -> str:
    """The HTML page of a rollout."""
    return render("rollout", title=found.rollout.name, part=rollout_part(found, "rollout"))


def store_page(part: StorePart) -> str:
    """The HTML page of a store."""
    return render("store", part=part)
