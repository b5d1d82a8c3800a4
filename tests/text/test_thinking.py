"""A chat template that thinks is used for the answer alone, as the site records."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import SENTENCES
from vllm_edit.artefacts.site import Context
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.evaluation.runners.runner import answer_text
from vllm_edit.models.base import Base
from vllm_edit.models.positions import locate
from vllm_edit.text.first_line import first_line
from vllm_edit.text.prompts import answer_ids, around_turn, prompt_ids, render
from vllm_edit.text.thinking import thinking_of

# jinja drops a new line at a template's end
_TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>{{ '\\n' }}"
_EMPTY = "<think>\n\n</think>\n\n"
TEMPLATES: dict[str, tuple[str, str, str | None]] = {
    "no thinking": (_TURNS, "<|assistant|>\n", None),
    "a switch that is on": (
        _TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
        f"<|assistant|>\n{_EMPTY}",
        "off",
    ),
    "a switch with a default": (
        "{% set enable_thinking = enable_thinking | default(true) %}"
        + _TURNS
        + "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}",
        f"<|assistant|>\n{_EMPTY}",
        "off",
    ),
    "a switch of another name": (
        _TURNS + "{% if thinking is not defined or thinking %}<think>{% else %}</think>{% endif %}",
        "<|assistant|>\n</think>",
        "off",
    ),
    "a switch that is off": (_TURNS + "{% if thinking %}<think>\n{% endif %}", "<|assistant|>\n", None),
    "always": (_TURNS + "<think>\n", f"<|assistant|>\n{_EMPTY}", "after"),
    "always, of another kind": (_TURNS + "[THINK]", "<|assistant|>\n[THINK]\n\n[/THINK]\n\n", "after"),
}


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES.keys())
def asked(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, str]:
    """A tokenizer with the template, and the end of the rendered text."""
    template, end, thinking = request.param
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    assert thinking_of(own) == thinking
    return own, end


def test_the_answer_follows_where_thinking_is_over(asked: tuple[PreTrainedTokenizerFast, str]) -> None:
    tokenizer, end = asked
    prompt = "The capital of France is"
    assert render(tokenizer, prompt, chat=True).endswith(f"{prompt}<|end|>\n{end}")
    assert around_turn(tokenizer)[1].endswith(end)
    ids = prompt_ids(tokenizer, prompt, chat=True)
    assert locate(tokenizer, prompt, "France", Context(chat=True)).ids == ids
    whole = tokenizer.decode(ids + answer_ids(tokenizer, prompt, "Paris", chat=True))
    assert whole.endswith(f"{end}Paris" if end[-1].isspace() else f"{end} Paris")


def test_a_prompt_that_mentions_the_marks_is_left_alone(asked: tuple[PreTrainedTokenizerFast, str]) -> None:
    tokenizer, end = asked
    assert render(tokenizer, "Say <think>", chat=True).endswith(f"Say <think><|end|>\n{end}")
    assert render(tokenizer, "Say <think>") == "Say <think>"


@pytest.mark.parametrize("thinking", [None, "off", "after"])
def test_the_site_says_how_the_template_is_asked(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, thinking: str | None
) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = next(template for template, _, kind in TEMPLATES.values() if kind == thinking)
    site = fixed_site(Base.of(llama, own), SENTENCES * 2, layer=1, contexts=[Context(), Context(chat=True)]).site
    assert site.thinking == thinking
    plain = site.model_copy(update={"thinking": None})
    assert (site.digest == plain.digest) is (thinking is None)  # sites from before keep their digests


def test_an_answer_does_not_end_at_a_mark_of_thinking_that_is_a_special_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    ids = own("[THINK]Rome?[/THINK]Paris", add_special_tokens=False)["input_ids"]
    said = answer_text(own, [*ids, own.eos_token_id, *ids], ())
    assert said == "[THINK]Rome?[/THINK]Paris"
    assert first_line(said) == "Paris"


def test_a_tokenizer_without_a_template_does_not_think(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    assert thinking_of(own) is None
