"""`vllm-edit report`: a store's gates, evaluations and rollouts as one page."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.pages.examples import Parsed, measure, problems, report
from tests.store.example import compiled
from vllm_edit.artefacts.reports import GateReport
from vllm_edit.store.store import Store


@pytest.fixture
def names(store: Store) -> tuple[str, str, str]:
    """Patches with an evaluation, with a gate only, and without a record. The first is served."""
    first, second, third = (store.save(compiled(name, seed)) for seed, name in enumerate(("capital", "world", "plain")))
    gate = GateReport(
        failures=("locality: 0.500 over 4 prompts, the gate asks for 0.9",), not_judged="reverse of edit 0"
    )
    measured = report(patches=(second,), modes=("base", "weights"), costs=(), relations={}, sizes={})
    store.add_record(second, "gate", measured.model_dump(mode="json") | gate.as_record())
    store.registry.set_status(second, "rejected", "locality")
    old = report(patches=(first,), relations={}, answers=None).model_dump(mode="json")
    store.add_record(first, "report", {name: value for name, value in old.items() if name not in ("sizes", "methods")})
    store.registry.set_status(first, "accepted")
    store.registry.create_tenant("acme")
    store.registry.publish("acme", first)
    return first, second, third


def test_the_page_has_a_section_for_each_patch_rollout_and_file(
    program: Program, store: Store, names: tuple[str, str, str], tmp_path: Path
) -> None:
    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", "base", "--metric", "solved")
    page, file = tmp_path / "page.html", tmp_path / "many.json"
    file.write_text(report(relations={}, sizes={}).model_dump_json(), encoding="utf-8")
    ran = program("report", file, "--out", page, "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"page": str(page), "patches": 3, "files": 1, "rollouts": 1}
    written = page.read_text(encoding="utf-8")
    assert problems(written) == []
    text = Parsed.of(written).text
    for name in names:
        assert name in text
    linked = re.findall(r'<a href="#([\w-]+)">', written)
    assert linked == ["overview", "comparison", "patch-0", "patch-1", "patch-2", "file-0", "rollout-0"]
    assert "The store holds 3 patches of tiny, layer 1." in text
    assert "Gates: 1 accepted, 1 rejected, 1 ungated." in text
    assert "It has 1 tenant and 1 rollout (1 created)." in text
    assert "locality: 0.500 over 4 prompts, the gate asks for 0.9" in text
    assert "The gate has no probes for: reverse of edit 0." in text
    assert "Not evaluated: the measures below are those of its gate." in text
    assert text.count("No report is recorded with it") == 1
    overview = written.partition('id="overview"')[2].partition("</table>")[0]
    cells = {row[0].partition("@")[0]: row[1:] for row in
             (re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line) for line in overview.split("<tr>")[2:])}  # fmt: skip
    assert [cells["capital"][place] for place in (0, 1, 3, 4, 6)] == ["rome", "accepted", "acme", "1", "0.938"]
    assert [cells["world"][place] for place in (1, 3)] == ["rejected", "–"]
    assert cells["plain"][-3:] == ["–", "–", "–"]


def test_quality_is_drawn_over_the_number_of_edits_where_patches_have_several(
    program: Program, store: Store, names: tuple[str, str, str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert program("report", "--out", page).code == 0
    assert "Quality by number of edits" not in page.read_text(), "all patches have one edit"
    one = compiled("two", 5)
    edit = one.manifest.edits[0]
    edits = (edit, edit.model_copy(update={"subject": "Spain", "prompt": "The capital of Spain is"}))
    two = store.save(replace(one, manifest=one.manifest.model_copy(update={"edits": edits, "method": "memit"})))
    measured = report(patches=(two,), measures=(measure("reliability", "weights", 0.25),), relations={}, sizes={})
    store.add_record(two, "report", measured.model_dump(mode="json"))
    assert program("report", "--out", page, "--limit", 1).code == 0
    written = page.read_text(encoding="utf-8")
    shown = dict(re.findall(r"<desc id=\"([\w-]+)\">([^<]*)</desc>", written))
    assert shown["store-sizes-reliability-text"] == (
        "edits of a patch. rome: 0.938 (0.812 to 1) at 1; memit: 0.25 (0.125 to 0.312) at 2"
    )
    assert "two@" in shown["store-reliability-text"]
    assert "memit, weights: 0.25 (0.125 to 0.312)" in shown["store-reliability-text"]
    assert "3 older patches have no section" in written
    assert problems(written) == []


def test_an_empty_store_has_a_page(program: Program, store: Store, tmp_path: Path) -> None:
    ran = program("report", "--out", tmp_path / "page.html")
    assert ran.out == f"wrote {tmp_path / 'page.html'}: The store holds 0 patches of tiny, layer 1.\n"
    assert problems((tmp_path / "page.html").read_text(encoding="utf-8")) == []


def test_mistakes_are_reported_in_one_line(
    program: Program, store: Store, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, file = tmp_path / "page.html", tmp_path / "file.json"

    def message(*arguments: object) -> str:
        ran = program("report", "--out", page, *arguments)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert not page.exists()
        return ran.err

    for content, wanted in (
        ("[1]", "expected a report of `vllm-edit eval --json`, got list"),
        ("{", "expected a report of `vllm-edit eval --json`, which is JSON"),
        (json.dumps({"patches": 1}), "expected a Report; got another record (patches: "),
    ):
        file.write_text(content)
        assert f"{file}: {wanted}" in message(file)
    assert "No such file" in message(tmp_path / "absent.json")
    store.add_record(names[2], "report", {"patches": [3]})
    assert f"the last report record of {names[2]}: expected a Report" in message()
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own mark of a module that cannot be imported
    assert "a page needs matplotlib; install it with: pip install 'vllm-edit[plot]'" in message()
