"""Averages of traced effects: roles, intervals, roles that stand out; and their table and picture."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vllm_edit.errors import EditError
from vllm_edit.tracing.corruption import KINDS, Kind
from vllm_edit.tracing.effects import AverageEffects, Mean, role_of
from vllm_edit.tracing.effects_table import effects_table, verdicts
from vllm_edit.tracing.heat_map import draw_heat_map
from vllm_edit.tracing.trace import Trace, TracedPrompt, TraceSettings


def prompt(
    first: int, last: int, tokens: int, effects: dict[Kind, list[list[float]]] | None = None, corrupted: float = 0.1
) -> TracedPrompt:
    """A prompt of two layers, its subject from token `first` to `last`; without effects they are all zero."""
    shape = (2, tokens - first)
    given = {kind: torch.tensor(rows) for kind, rows in (effects or {}).items()}
    return TracedPrompt(
        prompt="It is in",
        subject="It",
        tokens=tuple(f"t{index}" for index in range(tokens)),
        first=first,
        last=last,
        answer="Rome",
        believed=None,
        clean=0.9,
        corrupted=corrupted,
        effects={kind: given.get(kind, torch.zeros(shape)) for kind in KINDS},
    )


def averages(*prompts: TracedPrompt) -> AverageEffects:
    return AverageEffects(Trace("tiny", 2, TraceSettings(), 0.05, 1, prompts))


def test_every_token_from_the_subject_on_has_one_role() -> None:
    long = prompt(1, 4, 9)
    assert [role_of(long, token) for token in range(1, 9)] == [
        "first_subject", "middle_subject", "middle_subject", "last_subject", "first_after", *["further"] * 2, "last"
    ]  # fmt: skip
    assert [role_of(prompt(0, 0, 2), token) for token in range(2)] == ["last_subject", "last"]
    assert [role_of(prompt(1, 2, 3), token) for token in (1, 2)] == ["first_subject", "last_subject"]


def test_a_roles_tokens_are_averaged_within_a_prompt_and_then_over_the_prompts_that_have_it() -> None:
    short = prompt(1, 1, 3, {"mlp": [[0.2, 0.0], [0.4, 0.1]]})
    long = prompt(0, 1, 6, {"mlp": [[0.0, 0.4, 0.0, 0.1, 0.3, 0.0], [0.0, 0.8, 0.0, 0.0, 0.0, 0.5]]})
    found = averages(short, long).by_kind["mlp"]
    assert [mean.value for mean in found["last_subject"]] == pytest.approx([0.3, 0.6])
    assert [mean.n for mean in found["last_subject"]] == [2, 2]
    assert found["further"][0].value == pytest.approx(0.2)
    assert (found["further"][0].n, found["further"][0].low) == (1, None)
    assert [mean.value for mean in found["last"]] == pytest.approx([0.0, 0.3])
    assert "middle_subject" not in found


def test_intervals_are_those_of_a_mean() -> None:
    mean = Mean.of([0.1, 0.2, 0.3, 0.4])
    half = 1.96 * math.sqrt(0.05 / 3 / 4)  # s² = 0.05/3
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-4)
    found = averages(prompt(1, 1, 3, corrupted=0.1), prompt(1, 1, 3, corrupted=0.3))
    assert (found.clean.value, found.corrupted.value, found.total.value) == pytest.approx((0.9, 0.2, 0.7))
    assert found.total.low == pytest.approx(0.7 - 0.196, abs=1e-3)


def test_a_role_stands_out_only_if_its_interval_is_above_every_other() -> None:
    def one(subject: float, last: float) -> TracedPrompt:
        return prompt(1, 1, 3, {"mlp": [[subject, 0.0], [0.0, last]]})

    clear = averages(one(0.5, 0.01), one(0.6, 0.02), one(0.55, 0.0))
    peak = clear.outstanding("mlp")
    assert peak is not None
    assert (peak.role, peak.layer) == ("last_subject", 0)
    assert clear.suggested_site() == (0, "subject_last")
    blurred = averages(one(0.5, 0.9), one(0.6, 0.1), one(0.55, 0.8))
    assert blurred.outstanding("mlp") is None
    assert blurred.suggested_site() == (1, "last")
    assert averages(one(0.5, 0.01)).outstanding("mlp") is None  # one prompt has no interval


def test_the_answer_is_handed_over_where_the_last_token_carries_more_than_the_subject() -> None:
    moved = averages(prompt(0, 1, 3, {"hidden": [[0.1, 0.6, 0.2], [0.0, 0.3, 0.4]]}))
    assert moved.handover() == 1
    assert averages(prompt(0, 1, 3, {"hidden": [[0.1, 0.6, 0.2], [0.0, 0.3, 0.1]]})).handover() is None
    assert averages(prompt(0, 1, 2)).handover() is None


def test_the_record_is_json_and_the_table_shows_numbers_with_intervals() -> None:
    effects: dict[Kind, list[list[float]]] = {"mlp": [[0.25, 0.0], [0.0, 0.0]], "hidden": [[0.5, 0.1], [0.1, 0.8]]}
    found = averages(prompt(1, 1, 3, effects), prompt(1, 1, 3, effects))
    record = json.loads(json.dumps(found.as_record()))
    assert record["effects"]["mlp"]["last_subject"][0] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 2}
    assert record["suggested_site"] == {"layer": 0, "token": "subject_last"}
    assert record["prompts"][0]["roles"] == ["last_subject", "last"]
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(effects_table(found))
    text = console.export_text()
    assert "0.250 [0.25, 0.25] at 0" in text
    assert "MLP: the last subject token at layer 0 stands out (0.250 [0.25, 0.25])" in text
    assert verdicts(found)[-1].endswith("layer 0, token subject_last")


@pytest.mark.parametrize(("name", "start"), [("heat.png", b"\x89PNG"), ("heat.svg", b"<?xml")])
def test_a_heat_map_is_written_and_the_same_effects_give_the_same_file(name: str, start: bytes, tmp_path: Path) -> None:
    found = averages(prompt(1, 1, 3, {"mlp": [[0.2, 0.0], [0.4, 0.1]]}), prompt(0, 1, 6))
    draw_heat_map(found, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    draw_heat_map(found, tmp_path / name)
    assert first.startswith(start)
    assert (tmp_path / name).read_bytes() == first


def test_a_picture_that_cannot_be_drawn_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = averages(prompt(1, 1, 3))
    with pytest.raises(EditError, match=r"expected a picture named \*\.png or \*\.svg; got .*heat\.pdf"):
        draw_heat_map(found, tmp_path / "heat.pdf")
    with pytest.raises(EditError, match="there is no folder"):
        draw_heat_map(found, tmp_path / "nowhere" / "heat.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own mark of a module that cannot be imported
    with pytest.raises(EditError, match=r"needs matplotlib; install it with: pip install 'vllm-edit\[plot\]'"):
        draw_heat_map(found, tmp_path / "heat.png")
