"""BOS before plain text: whether a tokenizer adds it, and a change of that which its saved files contain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def puts_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """True if the tokenizer adds its BOS before plain text."""
    ids = tokenizer("Paris")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def put_bos(tokenizer: PreTrainedTokenizerFast, wanted: bool) -> None:
    """Make the fast tokenizer add its BOS once before plain text, or not at all, in place.

    The backend's template is changed, because tokenizer.json contains it. Some tokenizer classes do not save the flag
    `add_bos_token`.
    """
    if puts_bos(tokenizer) == wanted:
        return
    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    single, pair, known = ("$A", "$A $B:1", [])
    if wanted:
        single, pair, known = (f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, number)])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single, pair, known)


def bos_in_chat(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of BOS tokens that the chat template writes at the beginning of a turn; 0 without a template."""
    if not getattr(tokenizer, "chat_template", None) or tokenizer.bos_token_id is None:
        return 0
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Paris"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    count = next((number for number, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
    return count
