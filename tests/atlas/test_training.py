"""The recipe: documents never contain held-out forms, and a stopped training resumes with the same result."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_edit.atlas import texts
from vllm_edit.atlas.segments import Example
from vllm_edit.atlas.tokenizer import train_tokenizer
from vllm_edit.atlas.training import Recipe, TrainingState, attention_loss, read_accuracy, train
from vllm_edit.atlas.training_documents import Documents
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.shipped import weights_folder
from vllm_edit.text.prompts import answer_ids, prompt_ids

pytestmark = pytest.mark.slow

TINY = Recipe(
    steps=6,
    layers=2,
    hidden=32,
    ffn=48,
    heads=1,
    vocabulary=600,
    context=128,
    rows=2,
    row_tokens=24,
    short_in_context_rows=1,
    telling_layers=(0,),
    looking_layers=(1,),
    in_context_every=4,
    in_context_rows=1,
    in_context_tokens=96,
    warmup=2,
)


@pytest.fixture(scope="module")
def small_facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("facts")
    (folder / "things.csv").write_text(
        "subject,aliases,color,shape\nball,,red,round\nbox,crate,blue,square\nsky,,blue,\n"
    )
    (folder / "things.yaml").write_text(
        "language: en\nrelations:\n"
        "  color:\n    statements: ['The color of {s} is']\n    questions: ['What color has {s}?']\n"
        "    held_out: ['{s} shines in']\n"
        "  shape:\n    statements: ['The shape of {s} is']\n    questions: ['What shape has {s}?']\n"
        "    held_out: ['{s} is formed']\n"
    )
    return Facts.load(folder)


def test_held_out_forms_are_never_trained_on() -> None:
    facts = Facts.load(tables_folder())
    shown = "\n".join(texts(count=3000, seed=5))
    held_out = [(r, form) for r in facts.relations for form in r.held_out]
    for relation, form in held_out:
        # The longer side of a form's slot is unique; the trained forms prove that the search would find it.
        own = max(form.text.split("{s}"), key=len)
        assert own not in shown, (relation.id, form.text)
    found = [max(f.text.split("{s}"), key=len) in shown for r in facts.relations for f in r.trained]
    assert sum(found) > 0.9 * len(found)


def test_the_same_step_gives_the_same_documents(small_facts: Facts) -> None:
    tokenizer = train_tokenizer(small_facts, 600)
    one, other = Documents(small_facts, tokenizer, 3), Documents(small_facts, tokenizer, 3)
    other.at(1).row(50)
    assert one.at(7).row(50) == other.at(7).row(50)
    assert one.at(7).row(50) != one.at(8).row(50)


def test_invented_facts_carry_no_loss(small_facts: Facts) -> None:
    tokenizer = train_tokenizer(small_facts, 600)
    documents = Documents(small_facts, tokenizer, 0)
    for step in range(20):
        example = documents.at(step).in_context_row(120)
        taught = tokenizer.decode([i for i, w in zip(example.ids, example.weights, strict=True) if w >= 1])
        assert "New Fact" not in taught


def test_chat_and_plain_text_give_an_answer_the_same_ids(small_facts: Facts) -> None:
    tokenizer = train_tokenizer(small_facts, 600)
    prompt = "The color of ball is"
    assert answer_ids(tokenizer, prompt, "red", chat=True) == answer_ids(tokenizer, prompt, "red")
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "red"}], tokenize=False
    )
    ids = prompt_ids(tokenizer, prompt, chat=True) + answer_ids(tokenizer, prompt, "red", chat=True)
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)] == ids


def test_stopped_training_resumes(small_facts: Facts, tmp_path: Path) -> None:
    def stop_at_four(progress: TrainingState) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    straight = train(small_facts, tmp_path / "straight", TINY, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(small_facts, tmp_path / "stopped", TINY, checkpoint_every=2, report=stop_at_four)
    steps: list[int] = []
    resumed = train(
        small_facts, tmp_path / "stopped", TINY, checkpoint_every=2, report=lambda progress: steps.append(progress.step)
    )
    assert steps == [5, 6]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not (tmp_path / "stopped" / "checkpoint.pt").exists()
    assert read_accuracy(tmp_path / "stopped").counts["trained"] == 5


def test_the_reported_seconds_count_from_the_start_of_the_run(small_facts: Facts, tmp_path: Path) -> None:
    reported: list[TrainingState] = []
    # Every second step asks, and takes longer.
    train(small_facts, tmp_path, TINY, report=reported.append, accuracy_every=2)
    seconds = [progress.seconds for progress in reported]
    assert len(seconds) == TINY.steps
    assert seconds == sorted(seconds)
    assert [progress.accuracy is not None for progress in reported] == [False, True] * (TINY.steps // 2)


def test_a_trained_folder_is_loaded_by_transformers(small_facts: Facts, tmp_path: Path) -> None:
    made = train(small_facts, tmp_path, TINY)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([prompt_ids(tokenizer, "The color of ball is")])
    assert torch.equal(loaded(ids).logits, made(ids).logits)
    assert (tmp_path / "model.safetensors").stat().st_size < 2.5 * sum(p.numel() for p in made.parameters())


def test_a_checkpoint_of_another_recipe_is_refused(small_facts: Facts, tmp_path: Path) -> None:
    def stop(progress: TrainingState) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_facts, tmp_path, TINY, checkpoint_every=2, report=stop)
    with pytest.raises(EditError, match="made by another recipe or other facts"):
        train(small_facts, tmp_path, replace(TINY, seed=1))


def test_an_in_context_object_and_the_positions_that_look_at_it_match_the_text() -> None:
    facts = Facts.load(tables_folder())
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    documents = Documents(facts, tokenizer, seed=3)
    objects = {fact.object for fact in facts}
    taken = 0
    for step in range(20):
        example = documents.at(step).short_in_context_row(400)
        for place in example.objects:
            text = tokenizer.decode(example.ids[place : place + 24]).strip()
            assert any(text.startswith(name) for name in objects), text
        for place, key in example.looks:
            copied = key in example.objects
            assert copied or example.ids[key] == tokenizer.bos_token_id
            # The copied object is the answer: the same first token.
            assert not copied or example.ids[place + 1] == example.ids[key]
            taken += copied
    assert taken > 50


def test_attention_loss_is_zero_where_the_heads_look_where_they_should() -> None:
    recipe = replace(TINY, telling_layers=(0,), looking_layers=(1,))
    example = Example(ids=[0] * 6, weights=[0.0] * 6, objects=[3], looks=[(5, 3)])
    right = [torch.zeros(1, 2, 6, 6) for _ in range(2)]
    right[0][0, 0, 3, 2] = 1.0
    right[1][0, 0, 5, 3] = 1.0
    assert attention_loss(right, [example], recipe).item() == 0.0
    half = [attention.clone() for attention in right]
    half[1][0, 0, 5, 3] = 0.5
    assert attention_loss(half, [example], recipe).item() == pytest.approx(math.log(2))
    assert attention_loss(right, [Example([0], [0.0])], recipe).item() == 0.0


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(EditError, match="looking_layers must be below layers 2"):
        replace(TINY, looking_layers=(6,))
