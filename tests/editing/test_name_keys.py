"""Names at a site at the subject's token: at the beginning of a text, and other names with the edited ending."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.editing.examples import LOOSE, bench
from tests.tiny import tiny_tokenizer
from vllm_edit.composition.solver import row_space
from vllm_edit.edit import Edit
from vllm_edit.editing.rome import factors
from vllm_edit.editing.rome.factors import prepare
from vllm_edit.editing.rome.keys import measure_inputs
from vllm_edit.editing.rome.name_keys import opening_forms, proper_names, same_ending
from vllm_edit.models.base import Base
from vllm_edit.models.positions import locate
from vllm_edit.models.rows import Row

PROVINCE = Edit(prompt="The capital of North Sakarya Province is", subject="North Sakarya Province", target_new="Paris")


def test_other_names_replace_the_text_before_each_ending() -> None:
    found = same_ending(PROVINCE, ["Mary", "North"])
    assert [[form.prompt for form in forms] for forms in found] == [
        ["The capital of Mary Province is"],  # no name that is a word of the subject
        ["The capital of Mary Sakarya Province is"],
    ]
    assert [form.subject for forms in found for form in forms] == ["Mary Province", "Mary Sakarya Province"]


def test_a_name_of_one_word_has_no_ending_and_an_aliass_ending_is_edited() -> None:
    assert same_ending(PROVINCE.model_copy(update={"prompt": "Sakarya is in", "subject": "Sakarya"}), ["Mary"]) == []
    named = PROVINCE.model_copy(update={"aliases": ("the Province",)})
    assert [[form.subject for form in forms] for forms in same_ending(named, ["Mary"])] == [["Mary Sakarya Province"]]


def test_a_hyphen_divides_words_as_a_space_does_and_stays() -> None:
    edit = PROVINCE.model_copy(update={"prompt": "Hamburg-Amerika-Linie is in", "subject": "Hamburg-Amerika-Linie"})
    assert [form.prompt for forms in same_ending(edit, ["Mary"]) for form in forms] == [
        "Mary-Linie is in",
        "Mary-Amerika-Linie is in",
    ]


def test_every_name_of_the_subject_may_begin_a_text() -> None:
    edit = PROVINCE.model_copy(update={"aliases": ("Adapazarı",)})
    assert [form.prompt for form in opening_forms(edit)] == [
        "North Sakarya Province",
        "North Sakarya Province's",
        "Adapazarı",
        "Adapazarı's",
    ]


def test_names_are_capitalised_words_of_one_token_that_have_none_in_small_letters() -> None:
    tokenizer = tiny_tokenizer()
    names = proper_names(tokenizer, 4)
    assert len(set(names)) == 4
    for name in names:
        assert name.istitle()
        assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) == 1
        assert len(tokenizer(f" {name.lower()}", add_special_tokens=False)["input_ids"]) > 1
    assert proper_names(tokenizer, 4) == names


def test_an_update_is_whole_at_a_texts_beginning_and_nothing_at_other_names_of_the_same_ending() -> None:
    setup = bench(token="subject_last")
    prepared = prepare(setup.base, setup.site, setup.moment, [PROVINCE], LOOSE.replace(opening=True, same_ending=4))
    columns = prepared.columns
    assert {column.share for column in columns.columns} == {0.0, 1.0}
    assert any("opening" in column.form for column in columns.columns)
    A = row_space(columns.system(0.0))[0]  # [d_in]

    def key(prompt: str, name: str) -> torch.Tensor:
        found = locate(setup.base.tokenizer, prompt, name)
        row = Row(0, 0, "", tuple(found.ids), found.subject_last)
        return measure_inputs(setup.base.model, setup.site.module, [row], 1024)[0].double()

    names = proper_names(setup.base.tokenizer, 4)
    others = [key(f"The capital of {name} Province is", f"{name} Province") for name in names]
    opening = [key(text, PROVINCE.subject) for text in (PROVINCE.subject, f"{PROVINCE.subject}'s")]
    torch.testing.assert_close(torch.stack(others).mean(0) @ A, torch.tensor(0.0).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.stack(opening).mean(0) @ A, torch.tensor(1.0).double(), rtol=0, atol=0.1)


@pytest.mark.parametrize("bos", [False, True])
def test_a_subject_has_a_key_at_a_texts_beginning_unless_it_is_the_first_token_there(bos: bool) -> None:
    setup, tokenizer = bench(token="subject_last"), tiny_tokenizer(bos=bos)
    base = Base.of(setup.base.model, tokenizer)
    edit = PROVINCE.model_copy(update={"prompt": "The capital of X is", "subject": "X"})  # one byte, one token
    settings = LOOSE.replace(opening=True, max_columns=8)
    columns = prepare(base, setup.site, setup.moment, [edit], settings).columns.columns
    assert any("opening" in column.form for column in columns) is bos


def test_a_name_whose_key_resembles_ordinary_text_is_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = bench(token="subject_last")
    edit = PROVINCE.model_copy(update={"prompt": "The mayor of North Sakarya Province is"})
    settings = LOOSE.replace(opening=True)
    assert "opening" in {
        column.form for column in prepare(setup.base, setup.site, setup.moment, [edit], settings).columns.columns
    }
    names = factors._name_keys
    weak = lambda *given: [replace(key, whitened=0.01 * key.whitened) for key in names(*given)]  # noqa: E731
    monkeypatch.setattr(factors, "_name_keys", weak)
    assert {
        column.form for column in prepare(setup.base, setup.site, setup.moment, [edit], settings).columns.columns
    } == {"plain"}
