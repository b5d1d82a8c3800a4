"""Files whose tests use one server or one answer of vLLM. `pytest -n` keeps the tests of a group in one process."""

from __future__ import annotations

from types import MappingProxyType

from xdist.scheduler import LoadFileScheduling

GROUPS = MappingProxyType(
    {
        "tests/deltas/test_agreement.py": "stock vLLM",
        "tests/mend/test_vllm.py": "stock vLLM",
        "tests/faults/test_churn.py": "few slots",
        "tests/serving/test_console_browser.py": "few slots",
        "tests/serving/test_jobs_server.py": "few slots",
        "tests/serving/test_scope_server.py": "few slots",
        "tests/serving/test_guard_server.py": "few slots",
        "tests/serving/test_shadow_server.py": "few slots",
    }
)
"""File → its group. Any other file is a group of its own."""


class GroupScheduling(LoadFileScheduling):
    """Like `--dist loadfile`, by groups. Marks of xdist would do it too, but append a group's name to each test's."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return GROUPS.get(file, file)
