"""Refuses sampling fields with more entries than vLLM's workers hold: there, one too many ends the engine for everyone.

vLLM's own server does not check them. Pure functions on parsed JSON.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Literal, get_args

from vllm_edit.engine.compat.worker_limits import (
    BAD_WORD_TOKENS,
    MOST_ALLOWED_TOKEN_IDS,
    MOST_LOGIT_BIASES,
    MOST_STOP_TOKEN_IDS,
    most_bad_word_tokens,
)
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONValue

_FOR_THE_MODEL = 28  # stop ids that the model's generation_config.json may add
_MOST_ENTRIES = {
    "allowed_token_ids": MOST_ALLOWED_TOKEN_IDS,
    "logit_bias": MOST_LOGIT_BIASES,
    "stop_token_ids": MOST_STOP_TOKEN_IDS - _FOR_THE_MODEL,
}
_Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_SPELLINGS = 2  # vLLM forbids a bad word with a space before it too


def refuse_too_many_entries(body: Mapping[str, JSONValue]) -> None:
    """Raise `EditError` for a sampling field with more entries than a worker holds."""
    for field, most in _MOST_ENTRIES.items():
        given = body.get(field)
        if isinstance(given, list | dict) and len(given) > most:
            raise EditError(f"{field} has {len(given)} entries, at most {most} are served; send fewer")
    words, most = body.get("bad_words"), most_bad_word_tokens() // _SPELLINGS
    if isinstance(words, list) and (found := sum(_most_tokens(word) for word in words)) > most:
        raise EditError(
            f"bad_words may have {found} tokens (one per byte and one per word), at most {most} are served; send fewer "
            f"or shorter words, or ask the server's operator to raise {BAD_WORD_TOKENS}"
        )


def _most_tokens(word: JSONValue) -> int:
    """At least the tokens of a word: a token has a byte or more, in the normal form that the tokenizer writes. Some
    tokenizers put one more before a text."""
    if not isinstance(word, str):
        return 0  # vLLM refuses it
    forms = (unicodedata.normalize(form, word) for form in get_args(_Form))
    return 1 + max(len(spelling.encode(errors="surrogatepass")) for spelling in (word, *forms))
