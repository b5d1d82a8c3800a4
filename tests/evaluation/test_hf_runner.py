"""The Hugging Face runner against one prompt at a time, computed without batches, cache or padding."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.evaluation.conftest import Compile
from tests.tiny import tiny_model
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request, answer_text
from vllm_edit.patch import Patch
from vllm_edit.text.prompts import answer_ids, prompt_ids

PROMPTS = [
    "x",
    "The capital of France is",
    "誰是美國總統？",
    "Where is the Eiffel Tower? The Eiffel Tower is in the city of",
]


def continue_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, request: Request, tokens: int) -> str:
    """The slow reference: whole sequence again for every token."""
    ids = prompt_ids(tokenizer, request.prompt, request.chat)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + tokens:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return answer_text(tokenizer, ids[start:], ())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "gptj"])
def test_a_left_padded_batch_equals_each_prompt_alone(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    requests = [Request(prompt, chat) for prompt in PROMPTS for chat in (False, True)]
    answers = HFRunner(model, tokenizer).generate(requests, 8)
    assert answers == [continue_alone(model, tokenizer, request, 8) for request in requests]
    assert len(set(answers)) > 2


def test_a_question_longer_than_the_model_reads_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    runner, message = (
        HFRunner(llama, tokenizer),
        r"the question 'Rome is.* has .* the model reads at most 256: shorten it",
    )
    with pytest.raises(EditError, match=message):
        runner.generate([Request("Tea"), Request("Rome is " * 200)], 4)
    with pytest.raises(EditError, match=message):
        runner.score([(Request("Tea"), "Rome"), (Request("Rome is"), "Paris " * 300)])


def test_the_tokens_to_generate_count_too(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    runner, prompt = HFRunner(llama, tokenizer), "x " * 121
    free = 256 + 1 - len(prompt_ids(tokenizer, prompt))  # the last token is never read
    assert 0 < free < 256
    assert len(runner.generate([Request(prompt)], free)) == 1
    with pytest.raises(UnsafeEdit, match=r"with its answer, has 257 tokens; the model reads at most 256"):
        runner.generate([Request(prompt)], free + 1)


def test_a_model_whose_config_names_no_length_has_a_context(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = HFRunner(llama, tokenizer)
    assert runner.context == 256
    monkeypatch.delattr(llama.config, "max_position_embeddings")
    assert runner.context == 2048
    assert len(runner.generate([Request("Tea")], 2)) == 1


def test_each_request_is_answered_with_its_own_patch_and_the_model_stays_as_it_was(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, patch: Patch, compile_random: Compile
) -> None:
    first, second = compile_random(patch, 1), compile_random(patch, 2)
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    mixed = [Request(prompt, patch=patched) for prompt in PROMPTS for patched in (None, first, second)]
    answers = HFRunner(llama, tokenizer, batch=3).generate(mixed, 8)
    expected = []
    for request in mixed:
        if request.patch is None:
            expected.append(continue_alone(llama, tokenizer, request, 8))
        else:
            with request.patch.delta.apply(llama):
                expected.append(continue_alone(llama, tokenizer, request, 8))
    assert answers == expected
    assert len({tuple(answers[start::3]) for start in range(3)}) == 3
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())


def test_forced_answers_are_scored_as_alone(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, compiled: CompiledPatch
) -> None:
    cases = [
        (Request(prompt, chat, patched), answer)
        for prompt in PROMPTS
        for chat in (False, True)
        for patched in (None, compiled)
        for answer in ("Rome", "李宏毅", "a rather long answer")
    ]
    scored = HFRunner(llama, tokenizer, batch=5).score(cases)
    for (request, answer), score in zip(cases, scored, strict=True):
        ids = prompt_ids(tokenizer, request.prompt, request.chat)
        target = answer_ids(tokenizer, request.prompt, answer, request.chat)
        context = request.patch.delta.apply(llama) if request.patch else torch.no_grad()
        with context, torch.no_grad():
            logits = llama(input_ids=torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        assert score.nll == pytest.approx(float(nll), abs=1e-4)
        assert score.argmax == (logits.argmax(-1).tolist() == target)


def test_a_greedy_answer_forced_back_is_all_argmax(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Search a first token that decodes to itself, so that forcing its text forces its id."""
    runner = HFRunner(llama, tokenizer)
    for prompt in [f"{word} is" for word in ("Japan", "Paris", "Rome", "gold", "Python", "Linux", "Nokia")]:
        answer = runner.generate([Request(prompt)], 1)[0]
        produced = int(llama(input_ids=torch.tensor([prompt_ids(tokenizer, prompt)])).logits[0, -1].argmax())
        if answer_ids(tokenizer, prompt, answer) == [produced]:
            assert runner.score([(Request(prompt), answer)])[0].argmax
            return
    pytest.fail("no prompt gave a first token that survives decoding; choose other prompts")


def test_an_answer_ends_at_the_first_end_or_named_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Rome<|end|>Paris", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end in ids
    assert answer_text(tokenizer, ids, [end]) == "Rome"
    assert answer_text(tokenizer, [*ids[:1], tokenizer.eos_token_id, *ids], ()) == tokenizer.decode(ids[:1])
    assert answer_text(tokenizer, [], [end]) == ""


def test_an_answer_does_not_have_the_token_that_ended_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer)
    request = Request("The capital of France is")
    with torch.no_grad():
        ids = prompt_ids(tokenizer, request.prompt)
        for _ in range(2):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[-1] not in {ids[-2], *tokenizer.all_special_ids}
    model.generation_config.eos_token_id = [ids[-1], int(tokenizer.eos_token_id)]
    assert HFRunner(model, tokenizer).generate([request], 8) == [tokenizer.decode(ids[-2:-1])]


def test_no_requests_give_no_answers(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    runner = HFRunner(llama, tokenizer)
    assert runner.generate([], 4) == []
    assert runner.score([]) == []
