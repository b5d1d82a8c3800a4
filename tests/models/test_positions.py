"""The subject's last token is found by offsets in the served text, anywhere in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from vllm_edit.artefacts.site import Context
from vllm_edit.errors import EditError
from vllm_edit.models.positions import Located, contextual, locate, position
from vllm_edit.text.prompts import prompt_ids

CONTEXTS = [
    Context(),
    Context(prefix="The Eiffel Tower is in Paris. "),
    Context(prefix="France is a country of Europe, France"),
    Context(prefix="法國的首都是巴黎。"),
    Context(chat=True),
    Context(prefix="I think so. ", chat=True),
]
PROMPTS = [
    ("The capital of France is", "France"),
    ("France has the capital", "France"),
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
    ("全世界最帥的人是誰", "全世界最帥的人"),
    ("誰是全世界最帥的人", "全世界最帥的人"),
    ("台北101有多高", "台北101"),
    ("水分子的化學式是", "水分子"),
    ("龘靐是誰", "龘靐"),
    ("The head office of 龘 Nokia’s is in", "龘 Nokia"),
]


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(bos=request.param)


def text_through(tokenizer: PreTrainedTokenizerFast, located: Located, index: int) -> str:
    """The text of the tokens up to and including `index`."""
    return str(tokenizer.decode(located.ids[: index + 1], skip_special_tokens=False))


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
def test_tokens_up_to_the_position_spell_the_text_up_to_the_subjects_end(
    any_tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str, context: Context
) -> None:
    located = locate(any_tokenizer, prompt, subject, context)
    upto = text_through(any_tokenizer, located, located.subject_last)
    before = text_through(any_tokenizer, located, located.subject_last - 1)
    assert text_through(any_tokenizer, located, located.last).count(prompt) == 1
    assert upto.count(subject) == context.prefix.count(subject) + 1
    assert before.count(subject) == context.prefix.count(subject)
    assert position(located, "subject_last") == located.subject_last
    assert position(located, "last") == located.last == len(located.ids) - 1


@pytest.mark.parametrize("chat", [False, True])
def test_ids_are_those_that_the_prompt_is_served_with(any_tokenizer: PreTrainedTokenizerFast, chat: bool) -> None:
    prompt = "The capital of France is"
    located = locate(any_tokenizer, prompt, "France", Context(chat=chat))
    assert located.ids == prompt_ids(any_tokenizer, prompt, chat)
    behind = locate(any_tokenizer, prompt, "France", Context(prefix="Hamlet. ", chat=chat))
    assert behind.ids == prompt_ids(any_tokenizer, "Hamlet. " + prompt, chat)


def test_one_bos_and_it_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    for chat in (False, True):
        located = locate(tokenizer, "France has the capital", "France", Context(chat=chat))
        assert located.ids.count(tokenizer.bos_token_id) == 1
    assert locate(tokenizer, "France has", "France").subject_last > 0


def test_the_last_of_two_occurrences_in_the_prompt_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    located = locate(tokenizer, "France, the people of France speak", "France")
    assert text_through(tokenizer, located, located.subject_last).count("France") == 2


def test_an_occurrence_in_the_prefix_does_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = locate(tokenizer, "France has the capital", "France")
    behind = locate(tokenizer, "France has the capital", "France", Context(prefix="In France and France and"))
    assert behind.last - behind.subject_last == bare.last - bare.subject_last


@pytest.mark.parametrize("subject", ["assistant", "user", "end"])
def test_a_subject_that_the_template_writes_too_is_found_in_the_turn(
    tokenizer: PreTrainedTokenizerFast, subject: str
) -> None:
    located = locate(tokenizer, subject, subject, Context(chat=True))
    upto = text_through(tokenizer, located, located.subject_last)
    assert upto.endswith("\n" + subject)
    assert text_through(tokenizer, located, located.last).removeprefix(upto).startswith("<|end|>")


def test_a_whole_word_is_preferred_to_a_later_part_of_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    located = locate(tokenizer, "The language of Iran, for Iranians, is", "Iran")
    assert text_through(tokenizer, located, located.subject_last).endswith("of Iran")
    inside = locate(tokenizer, "An Iranian speaks", "Iran")
    assert "Iran" in text_through(tokenizer, inside, inside.subject_last)
    assert "Iran" not in text_through(tokenizer, inside, inside.subject_last - 1)


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges cross the subject's end: Latin ("x's" is one token) and inside Chinese characters."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # 台 = E5 8F B0, 北 = E5 8C 97; B0 and E5 merge, so that one token holds the end of one and the start of the next.
    byte = {0xB0: "°", 0xE5: "å"}
    merges = [("x", "'"), ("x'", "s"), (byte[0xB0], byte[0xE5])]
    vocabulary = alphabet | {"".join(pair): len(alphabet) + index for index, pair in enumerate(merges)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_subject_merged_with_the_next_text_is_at_the_merged_token(merging: PreTrainedTokenizerFast) -> None:
    located = locate(merging, "Max's town", "Max")
    assert merging.convert_ids_to_tokens(located.ids)[located.subject_last] == "x's"


def test_a_character_of_several_tokens_ends_at_its_last_one(merging: PreTrainedTokenizerFast) -> None:
    assert locate(merging, "北京", "北").subject_last == 2
    assert len(locate(merging, "北京", "北").ids) == 6


def test_a_token_across_two_characters_belongs_to_both(merging: PreTrainedTokenizerFast) -> None:
    located = locate(merging, "台北", "台")  # E5 | 8F | B0+E5 | 8C | 97
    assert (located.subject_last, len(located.ids)) == (2, 5)
    assert locate(merging, "台北", "台北").subject_last == 4


@given(st.text(alphabet="ab c'龘台北é😀", min_size=1), st.text(alphabet="ab 龘台北é😀", max_size=6), st.booleans())
def test_the_position_is_right_for_any_text(before: str, after: str, chat: bool) -> None:
    """Property: the tokens up to the position cover the subject's end, those before it do not."""
    tokenizer, subject = _HYPOTHESIS_TOKENIZER, "Zoë台北101"
    prompt = f"{before}{subject}{after}".strip()
    located = locate(tokenizer, prompt, subject, Context(chat=chat))
    assert subject in text_through(tokenizer, located, located.subject_last)
    assert subject not in text_through(tokenizer, located, located.subject_last - 1)


_HYPOTHESIS_TOKENIZER = tiny_tokenizer()


def test_prefix_and_prompt_are_joined_like_prompt_and_answer() -> None:
    assert contextual("the end", Context(prefix="In")) == "In the end"
    assert contextual("the end", Context(prefix="In. ")) == "In. the end"
    assert contextual("誰是", Context(prefix="In")) == "In誰是"
    assert contextual("the end", Context()) == "the end"


def test_a_prompt_without_its_subject_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="does not contain the subject 'Spain'"):
        locate(tokenizer, "The capital of France is", "Spain")
    with pytest.raises(EditError, match="does not contain the subject ''"):
        locate(tokenizer, "The capital of France is", " ")


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(EditError, match="rewrites the prompt"):
        locate(tokenizer, "The capital of France is", "France", Context(chat=True))
    assert locate(tokenizer, "The capital of France is", "France").subject_last == 4


def test_chat_without_a_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(EditError, match="no chat template"):
        locate(tokenizer, "The capital of France is", "France", Context(chat=True))


class CharacterTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A real slow tokenizer: one character, one token."""

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(128)}

    @property
    def vocab_size(self) -> int:
        return 128

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(EditError, match="expected a fast tokenizer"):
        locate(CharacterTokenizer(), "The capital of France is", "France")
