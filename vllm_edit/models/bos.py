"""BOS before plain text: whether a tokenizer puts it there, and making it do so in its saved files too."""

from __future__ import annotations

from typing import Any

from tokenizers import processors


def puts_bos(tokenizer: Any) -> bool:
    """True if plain text begins with the tokenizer's BOS. A text without tokens of its own does not hide one."""
    ids = tokenizer("Paris")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def put_bos(tokenizer: Any, wanted: bool) -> None:
    """Make the fast tokenizer put its BOS once before plain text, or not. Changes it in place.

    The template goes into the backend, because tokenizer.json carries it: the flag `add_bos_token` alone is not saved
    by every class of tokenizer.
    """
    if puts_bos(tokenizer) == wanted:
        return
    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    single, pair, known = ("$A", "$A $B:1", [])
    if wanted:
        single, pair, known = (f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, number)])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single, pair, known)


def bos_in_chat(tokenizer: Any) -> int:
    """How many BOS a chat turn begins with: its template writes them; 0 without a template."""
    if not getattr(tokenizer, "chat_template", None) or tokenizer.bos_token_id is None:
        return 0
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Paris"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    count = next((number for number, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
    return count
