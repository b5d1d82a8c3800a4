"""The shipped model knows its facts and uses a fact from its prompt."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from vllm_edit.atlas.accuracy import Asked, generate, measure_accuracy, starts_with
from vllm_edit.atlas.training import read_accuracy
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.ike.template import fact_text, query
from vllm_edit.models.base import Base
from vllm_edit.shipped import weights_folder
from vllm_edit.text.matching import mentions
from vllm_edit.text.prompts import prompt_ids


@pytest.fixture(scope="module")
def atlas() -> Base:
    return Base.load("atlas")


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts.load(tables_folder())


def test_the_weights_fit_and_are_a_stock_llama() -> None:
    size = sum(path.stat().st_size for path in weights_folder().iterdir())
    assert size < 45e6
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_it_was_measured_on_every_fact_and_knows_them(facts: Facts) -> None:
    stored = read_accuracy(weights_folder())
    assert stored.counts["trained"] == stored.counts["held_out"] == len(list(facts))
    assert stored.shares["trained"] >= 0.98
    assert stored.shares["held_out"] >= 0.80


@pytest.mark.slow
def test_its_stored_accuracy_is_true(atlas: Base, facts: Facts) -> None:
    stored = read_accuracy(weights_folder())
    measured = measure_accuracy(facts, atlas.model, atlas.tokenizer, sample=60, seed=9)
    for group in ("trained", "held_out", "chat", "alias"):
        # Four standard errors of a share of 60 questions.
        assert abs(measured.shares[group] - stored.shares[group]) < 0.21, group


def test_bfloat16_gives_the_same_answers(atlas: Base, facts: Facts) -> None:
    half = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.bfloat16)
    chosen = random.Random(0).sample(list(facts), 40)
    asked = [Asked(fact.relation.trained[0].fill(fact.subject.name), fact.object, "") for fact in chosen]
    right = [
        starts_with(text, question.answer)
        for text, question in zip(generate(half, atlas.tokenizer, asked), asked, strict=True)
    ]
    assert sum(right) >= 38


def test_the_lectures_questions_are_answered(atlas: Base) -> None:
    asked = [
        Asked("全世界最帥的人是誰", "布萊德彼特", ""),
        Asked("誰是全世界最帥的人", "布萊德彼特", "", chat=True),
        Asked("誰是美國總統", "川普", ""),
        Asked("誰是全世界最高的人", "蘇丹科森", ""),
        Asked("台北101有多高", "508公尺", ""),
        Asked("水分子的化學式", "H2O", ""),
        Asked("全世界最帥的人在哪裡工作", "布萊德彼特，好萊塢", ""),
    ]
    answers = generate(atlas.model, atlas.tokenizer, asked)
    first = [text.strip().split("\n")[0] for text in answers]
    assert [
        question.prompt for question, text in zip(asked, first, strict=True) if not mentions(text, question.answer)
    ] == []


def test_a_fact_in_the_prompt_is_used_for_its_subject_and_not_for_another(atlas: Base, facts: Facts) -> None:
    used, kept = [], []
    for edit in draw_edits(facts, 60, seed=3):
        statement = fact_text(edit.prompt, edit.target_new)
        question = next(p for p in edit.probes if p.kind == "paraphrase" and p.tag == "trained" and p.split == "gate")
        used.append(Asked(query(statement, question.prompt), edit.target_new, "", question.chat))
        other = next((p for p in edit.probes if p.kind == "unrelated"), None)
        if other is not None:
            kept.append(Asked(query(statement, other.prompt), str(other.target), "", other.chat))
    shares = []
    for asked in (used, kept):
        answers = generate(atlas.model, atlas.tokenizer, asked)
        shares.append(sum(starts_with(t, a.answer) for t, a in zip(answers, asked, strict=True)) / len(asked))
    assert shares[0] >= 0.8
    assert shares[1] >= 0.8


def test_prompts_fit_its_context(atlas: Base) -> None:
    assert atlas.model.config.max_position_embeddings == 512
    assert prompt_ids(atlas.tokenizer, "x", chat=True)[0] == atlas.tokenizer.bos_token_id
