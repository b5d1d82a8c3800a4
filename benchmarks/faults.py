"""Faults in their full sizes: what was done to a store and to a server to break them, and how often.

    python -m benchmarks.faults

Runs tests/faults with --full; what the tests count is the result. A run in which one fails is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import machine, write_section

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
    watching = Watching()
    code = pytest.main([str(TESTS), "--full", "--capture=no", "--exitfirst"], plugins=[watching])
    if code:
        raise SystemExit(code)
    text = f"{machine()}\n\n{table(watching.ran)}"
    write_section("faults", text, {"machine": machine(), "ran": list(map(asdict, watching.ran))}, "make test-faults")


def table(ran: Sequence[Ran]) -> str:
    """A row per test; the numbers of its cases are added up."""
    lines = ["| it holds that | cases | counted | seconds |", "|---|---|---|---|"]
    for test in dict.fromkeys(one.test for one in ran):
        own = [one for one in ran if one.test == test]
        skipped = sorted({f"skipped: {one.skipped}" for one in own if one.skipped})
        told = "; ".join([*_sums(one.counts for one in own), *skipped])
        claim = test.removeprefix("test_").replace("_", " ")
        lines.append(f"| {claim} | {_cases(own)} | {told} | {sum(one.seconds for one in own):.0f} |")
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
    names = [one.case for one in own if one.case]
    return ", ".join(names) if len(names) < 4 else str(len(names))


if __name__ == "__main__":
    main()
