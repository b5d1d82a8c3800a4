"""r-ROME end to end at a site: forms become columns, subjects become key groups, and misses are refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench, trained
from vllm_edit.artefacts.manifest import KeyGroup
from vllm_edit.artefacts.site import Context
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.rome import rounds
from vllm_edit.editing.rome.edits import compile_edits
from vllm_edit.editing.rome.factors import prepare
from vllm_edit.editing.rome.keys import FormKey, group_edits, make_columns
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.errors import EditError, UnsafeEdit

PEOPLE = Edit(prompt="Japan is home to the", subject="Japan", relation="people", target_new="Paris")
SPEECH = Edit(prompt="Japan and its people speak", subject="Japan", relation="language", target_new="Italy")


def test_the_key_is_the_modules_input_at_the_sites_token_with_the_bare_prompt_weighing_half() -> None:
    setup = bench(token="subject_last", contexts=(Context(), Context(prefix="Because. "), Context(prefix="In Paris. ")))
    prepared = prepare(setup.base, setup.site, setup.moment, [FRANCE], LOOSE)
    inputs = []
    module = setup.base.model.get_submodule(setup.site.module)
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    for text in ("The capital of France", "Because. The capital of France", "In Paris. The capital of France"):
        setup.base.model(torch.tensor([setup.base.tokenizer(text)["input_ids"]]))
    handle.remove()
    bare, first, second = (states[-1] for states in inputs)
    expected = 0.5 * bare + 0.25 * first + 0.25 * second
    torch.testing.assert_close(prepared.columns.keys[0], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        prepared.columns.whitened[0].double(), setup.moment.whiten(expected.detach()[None])[0], rtol=1e-3, atol=1e-3
    )


def test_forms_of_an_edit_become_columns_of_one_group_and_gate_probes_never_do() -> None:
    setup = bench(contexts=(Context(), Context(chat=True)))
    probes = (
        Probe(kind="paraphrase", prompt="Where is the capital of France?", split="tune"),
        Probe(kind="paraphrase", prompt="What is the capital of Germany?", split="gate"),
    )
    edit = FRANCE.model_copy(update={"aliases": ("Italy",), "probes": probes})
    prepared = prepare(
        setup.base, setup.site, setup.moment, [edit], LOOSE.replace(forms=("plain", "chat", "alias", "tune"))
    )
    assert [column.form for column in prepared.columns.columns] == ["plain", "chat", "alias:Italy", "tune:0"]
    assert set(prepared.columns.group_of) == {0}
    texts = {setup.base.tokenizer.decode(row.ids, skip_special_tokens=True) for row in prepared.rows}
    assert "The capital of Italy is" in texts
    assert "Where is the capital of France?" in texts
    assert not any("Germany" in text for text in texts)


def test_forms_whose_keys_nearly_coincide_are_averaged_and_the_rest_is_limited() -> None:
    def form(name: str, *key: float) -> FormKey:
        vector = torch.tensor(key, dtype=torch.float32)
        return FormKey(0, name, vector, vector, vector)  # C = I

    keys = [form("chat", 0, 1, 0), form("plain", 1, 0, 0), form("tune:0", 0.99, 0.14, 0), form("tune:1", 0, 0, 1)]
    made = make_columns((KeyGroup(edits=(0,)),), keys, merge_cosine=0.9, max_columns=1)
    assert [column.form for column in made.columns] == ["plain+tune:0", "chat"]
    torch.testing.assert_close(made.keys[0], torch.tensor([0.995, 0.07, 0.0]))


def test_two_facts_of_a_subject_at_its_token_share_one_residual_trained_on_both() -> None:
    setup = bench(token="subject_last", layer=1)
    result = compile_edits(
        setup.base, setup.site, setup.moment, [PEOPLE, FRANCE, SPEECH], LOOSE.replace(on_missed="report")
    )
    assert [group.edits for group in result.groups] == [(0, 2), (1,)]
    assert result.delta.rank == 2
    assert [column.form for column in result.columns] == ["plain", "plain"]  # equal keys: merged into one column
    assert [line.group for line in result.report.edits] == [0, 1, 0]


def test_equal_keys_of_different_subjects_stay_apart() -> None:
    vector = torch.ones(3)
    keys = [FormKey(index, "plain", vector, vector, vector) for index in range(2)]
    assert [group.edits for group in group_edits([FRANCE, JAPAN], keys, 0.9)] == [(0,), (1,)]
    assert [group.edits for group in group_edits([PEOPLE, JAPAN], keys, 0.9)] == [(0, 1)]


def test_the_references_residual_rule_adds_the_gap_between_the_bare_value_and_the_mean() -> None:
    contexts = (Context(), Context(prefix="Because. "))
    setup = bench("gpt2", contexts=contexts)
    settings = LOOSE.replace(residual_rule="reference", steps=0)
    computed = trained(setup, [FRANCE], settings)
    weight = linear_weight(setup.base.model.get_submodule(setup.site.module)).detach()
    gap = weight @ (computed.prepared.bare[0] - computed.prepared.columns.keys[0])  # v0 − W k̄
    assert gap.norm() > 0.1
    torch.testing.assert_close(computed.factors.residuals[0], gap, rtol=1e-4, atol=1e-5)


def test_a_missed_edit_is_refused_by_name_and_reported_on_request() -> None:
    setup = bench()
    hurried = LOOSE.replace(steps=1)
    with pytest.raises(UnsafeEdit, match=r"edit 1 \('The currency of Japan is the' → 'Paris'\): the target leads by -"):
        compile_edits(setup.base, setup.site, setup.moment, [FRANCE, JAPAN], hurried)
    report = compile_edits(
        setup.base, setup.site, setup.moment, [FRANCE, JAPAN], hurried.replace(on_missed="report")
    ).report
    assert report.missed == (0, 1)
    assert all(line.problems for line in report.edits)


def test_edits_that_miss_in_the_joint_solve_are_trained_on() -> None:
    setup = bench()
    edits = [FRANCE, JAPAN, BRAZIL]
    near = LOOSE.replace(margin=0.11, served_margin=0.2, damping=0.2, learning_rate=0.02)
    with pytest.raises(UnsafeEdit, match="compile it apart from the edits"):
        compile_edits(setup.base, setup.site, setup.moment, edits, near.replace(rounds=1))
    report = compile_edits(setup.base, setup.site, setup.moment, edits, near).report
    assert min(line.served_margin for line in report.edits) >= near.served_margin


def test_an_edit_that_misses_in_spite_of_training_is_trained_on_whole_rows_and_then_to_a_larger_margin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup, runs = bench(), list[tuple[bool, float]]()
    train, served = rounds.train_residuals, rounds.served_leads

    def watched(passes: Any, wanted: Mapping[int, float], *rest: Any) -> Any:
        runs.append((passes.whole, max(wanted.values())))
        return train(passes, wanted, *rest)

    def leaking(*rest: Any) -> torch.Tensor:
        return served(*rest) if len(runs) > 2 else torch.full_like(served(*rest), -1.0)

    monkeypatch.setattr(rounds, "train_residuals", watched)
    monkeypatch.setattr(rounds, "served_leads", leaking)
    compile_edits(setup.base, setup.site, setup.moment, [FRANCE], LOOSE.replace(margin=1.0, served_margin=0.1))
    assert runs == [(False, 1.0), (True, 1.0), (True, pytest.approx(1.0 + 2 * 1.1))]


def test_an_update_that_is_large_beside_the_weights_is_refused() -> None:
    setup = bench()
    with pytest.raises(UnsafeEdit, match=r"‖ΔW‖/‖W‖ is .*, at most 0.01 is allowed"):
        compile_edits(setup.base, setup.site, setup.moment, [FRANCE], LOOSE.replace(most_norm=0.01))


def test_a_key_like_those_of_ordinary_text_is_refused() -> None:
    setup = bench()
    with pytest.raises(UnsafeEdit, match=r"leverage .*, at least 100 is needed"):
        compile_edits(setup.base, setup.site, setup.moment, [FRANCE], LOOSE.replace(least_denominator=100.0))


def test_a_patch_of_too_high_a_rank_is_refused_before_anything_is_trained() -> None:
    setup = bench(max_rank=1)
    seen: list[str] = []
    with pytest.raises(EditError, match="needs rank 2; the site allows 1"):
        compile_edits(setup.base, setup.site, setup.moment, [FRANCE, JAPAN], LOOSE, lambda what, *_: seen.append(what))
    assert not seen


def test_settings_name_every_problem_at_once() -> None:
    with pytest.raises(EditError, match=r"unknown form 'reverse'.*learning_rate must be positive.*essence"):
        RomeSettings(forms=("plain", "reverse"), learning_rate=0.0, essence="it is a")
    with pytest.raises(EditError, match="unknown settings speed"):
        RomeSettings.of({"speed": 1})
    wanted = "on_missed must be one of error, report; got 'warn'; first_rows must be one of bare, text, all; got 'few'"
    with pytest.raises(EditError, match=wanted):
        RomeSettings.of({"first_rows": "few", "on_missed": "warn"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"residual_rule": "Shift"}, "residual_rule must be one of shift, reference; got 'Shift'"),
        (
            {"learning_rate": "fast", "steps": 2.5},
            "steps must be a whole number; got 2.5; learning_rate must be a number",
        ),
        ({"steps": True}, "steps must be a whole number; got True"),
        ({"whole_rows": "no"}, "whole_rows must be true or false; got 'no'"),
        ({"margin": float("nan")}, "margin must be a number; got nan"),
        ({"merge_cosine": 1.5}, "merge_cosine must be between 0 and 1; got 1.5"),
        ({"forms": "plain"}, "forms must be a list; got 'plain'"),
        ({"essence": 5}, "essence must be text; got 5"),
        ({"rounds": None}, "rounds must be a whole number; got None"),
    ],
)
def test_a_setting_of_a_wrong_type_or_value_is_reported_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(EditError, match=re.escape(message)) as refused:
        RomeSettings.of(values)
    assert "\n" not in str(refused.value)
    with pytest.raises(EditError, match=re.escape(message)):
        RomeSettings().replace(**values)


def test_settings_stay_as_they_were_given_and_read_back() -> None:
    """Their JSON is part of a compiled patch's name: 1 must not become 1.0."""
    settings = RomeSettings.of({"margin": 5, "forms": ["plain", "chat"]})
    assert json.dumps(settings.identity(0.5, 5)["margin"]) == "5"
    assert settings == RomeSettings(margin=5, forms=("plain", "chat"))
    assert RomeSettings.of(json.loads(json.dumps(settings.lasting()))) == settings
    assert hash(settings) == hash(settings.replace())


def test_tune_locality_probes_are_preserved_and_gate_probes_are_not_looked_at() -> None:
    setup = bench(token="last")
    probes = (
        Probe(kind="locality", prompt="The capital of Spain is", split="tune"),
        Probe(kind="locality", prompt="The capital of Italy is"),
    )
    edit = FRANCE.model_copy(update={"probes": probes})
    columns = prepare(setup.base, setup.site, setup.moment, [edit], LOOSE).columns
    assert [(column.form, column.share) for column in columns.columns] == [("plain", 1.0), ("keep:0", 0.0)]
    computed = trained(setup, [edit], LOOSE)
    kept = computed.prepared.columns.keys[1].double() @ computed.update.dense().T
    edited = computed.prepared.columns.keys[0].double() @ computed.update.dense().T
    assert kept.norm() < 1e-6 * edited.norm()
    assert len(prepare(setup.base, setup.site, setup.moment, [edit], LOOSE.replace(most_kept=0)).columns.columns) == 1
