"""Faults in their full sizes: what was done to a store and to a server to break them, and how often.

    python -m benchmarks.faults [-k EXPRESSION]

Runs tests/faults with --full; what the tests count is the result. A run in which one fails is none. With -k it runs
those tests only, as pytest does, and keeps what the last runs of the others counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.results_page import FOLDER, machine, write_section

TESTS = Path(__file__).parents[1] / "tests" / "faults"


@dataclass(frozen=True)
class Ran:
    """A fault test, with what it counted. case: of a test over several, else empty. skipped: why, if it was."""

    test: str
    case: str
    seconds: float
    counts: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""


class Watching:
    """A plugin of pytest that keeps what ran."""

    def __init__(self) -> None:
        self.ran: list[Ran] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, _, case = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.ran.append(Ran(test, case, report.duration, skipped=why.removeprefix("Skipped: ")))
        elif report.when == "call":
            self.ran.append(Ran(test, case, report.duration, dict(report.user_properties)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="only the tests that pytest selects by it")
    only = parser.parse_args().k
    watching = Watching()
    code = pytest.main([str(TESTS), "--full", "--capture=no", "--exitfirst", "-k", only], plugins=[watching])
    if code:
        raise SystemExit(code)
    ran = merged(_last(), watching.ran) if only else watching.ran
    text = f"{machine()}\n\n{table(ran)}"
    write_section("faults", text, {"machine": machine(), "ran": list(map(asdict, ran))}, "make test-faults")


def merged(last: Sequence[Ran], new: Sequence[Ran]) -> list[Ran]:
    """The results of the last runs, in their order; a test that ran now has its new result."""
    newest = {(run.test, run.case): run for run in (*last, *new)}
    return list(newest.values())


def _last() -> list[Ran]:
    path = FOLDER / "results" / "faults.json"
    return [Ran(**run) for run in json.loads(path.read_text())["ran"]] if path.exists() else []


def table(ran: Sequence[Ran]) -> str:
    """A row per test; the numbers of its cases are added up."""
    lines = ["| it holds that | cases | counted | seconds |", "|---|---|---|---|"]
    for test in dict.fromkeys(run.test for run in ran):
        own = [run for run in ran if run.test == test]
        skipped = sorted({f"skipped: {run.skipped}" for run in own if run.skipped})
        cases = "; ".join([*_sums(run.counts for run in own), *skipped])
        claim = test.removeprefix("test_").replace("_", " ")
        lines.append(f"| {claim} | {_cases(own)} | {cases} | {sum(run.seconds for run in own):.0f} |")
    return "\n".join(lines)


def _sums(counts: Iterable[dict[str, Any]]) -> list[str]:
    sums: dict[str, int] = {}
    for own in counts:
        for what, count in own.items():
            if isinstance(count, int):
                sums[what] = sums.get(what, 0) + count
    return [f"{count:,} {what}" for what, count in sums.items()]


def _cases(own: Sequence[Ran]) -> str:
    """Their names where they are few."""
    names = [run.case for run in own if run.case]
    return ", ".join(names) if len(names) < 4 else str(len(names))


if __name__ == "__main__":
    main()
