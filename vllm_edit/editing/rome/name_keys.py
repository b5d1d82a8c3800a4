"""Keys of names: an edited subject at the beginning of a text, and other names with the same ending.

These keys are for a site at the subject's last token. In early layers, the key there depends mostly on that token. The
key of "Province" in "Sakarya Province" is close to its key in every other name, so an edit of one province would change
all of them. The update must therefore preserve the mean key of other names with the same ending. A subject has a
different key at the beginning of a text, and where the tokenizer merges its last character with the next one; these
keys are also measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_edit.artefacts.site import Context
from vllm_edit.composition.solver import OPENING
from vllm_edit.edit import Edit
from vllm_edit.editing.rome.prompt_forms import Form, named_otherwise
from vllm_edit.text.name_words import separators
from vllm_edit.text.prompts import ids_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_OPENINGS = ("{}", "{}'s")
_FREQUENT = 512  # tokenizers list tokens by frequency, so these are the most frequent names
_LEAST_LETTERS = 4


def opening_forms(edit: Edit) -> list[Form]:
    """The subject and its aliases at the beginning of a text, alone and in the possessive; only for measuring keys."""
    return [
        Form(OPENING, opening.replace("{}", name), name, "", (Context(),))
        for name in (edit.subject, *edit.aliases)
        for opening in _OPENINGS
    ]


def same_ending(edit: Edit, names: Sequence[str]) -> list[list[Form]]:
    """Prompts about other names: for each ending of the subject, the prompt with each of `names` before that ending.

    The endings are the last word, and all words except the first. A one-word name has no ending. An ending that an
    alias shares is omitted, because a key cannot be both edited and preserved.
    """
    subject, breaks = edit.subject, separators(edit.subject)
    found = []
    for place in dict.fromkeys((breaks[-1], breaks[0])) if breaks else ():
        if any(alias.endswith(subject[place + 1 :]) for alias in edit.aliases):
            continue
        others = [name + subject[place:] for name in names if name not in subject]
        forms = [Form("keep", named_otherwise(edit, other), other, "", (Context(),)) for other in others]
        if forms:
            found.append(forms)
    return found


def proper_names(tokenizer: PreTrainedTokenizerFast, count: int) -> list[str]:
    """`count` names that are single tokens, sampled with a fixed seed. Returns fewer if the vocabulary has fewer.

    A name is a capitalised word whose lower-case form is not a single token.
    """

    def one_token(text: str) -> bool:
        return len(ids_after(tokenizer, "with", text)) == 1

    found = list[str]()
    for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = tokenizer.convert_tokens_to_string([token]).strip()
        is_name = len(word) >= _LEAST_LETTERS and word.isalpha() and word.istitle()
        if is_name and one_token(f" {word}") and not one_token(f" {word.lower()}"):
            found.append(word)
        if len(found) == _FREQUENT:
            break
    return random.Random(0).sample(found, min(count, len(found)))
