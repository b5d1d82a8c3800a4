"""Keys of names: an edited subject at the beginning of a text, and other names that end as it does.

For a site at the subject's last token. In early layers the key there depends mostly on that token alone. "Province" in
"Sakarya Province" has nearly the key of "Province" in every other name, so an edit of one province reaches all of them.
Therefore the update must not move the mean key of other names with the same ending. A subject has another key where it
begins a text, and where the tokenizer merges its last character with what follows: these keys are measured too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from vllm_edit.artefacts.site import Context
from vllm_edit.composition.kept import OPENING
from vllm_edit.editing.rome.forms import Form, named_otherwise
from vllm_edit.patch import Edit
from vllm_edit.prompting import ids_after

_OPENINGS = ("{}", "{}'s")
_FREQUENT = 512  # names that a tokenizer learned first are those that its text had most
_LEAST_LETTERS = 4
_BREAK = re.compile(r"(?<=\w)[\s-](?=\w)")
"""Between two words of a name: a space or a hyphen."""


def opening_forms(edit: Edit) -> list[Form]:
    """The subject and its aliases at the beginning of a text, alone and with a possessive. They are no prompts."""
    return [
        Form(OPENING, opening.replace("{}", name), name, "", (Context(),))
        for name in (edit.subject, *edit.aliases)
        for opening in _OPENINGS
    ]


def same_ending(edit: Edit, names: Sequence[str]) -> list[list[Form]]:
    """Prompts about other names: for each ending of the subject, the prompt with each of `names` before that ending.

    Endings are the last word, and all words but the first. A name of one word has none. An ending that an alias has too
    is left out: what is edited cannot be kept.
    """
    subject, breaks = edit.subject, [found.start() for found in _BREAK.finditer(edit.subject)]
    found = []
    for place in dict.fromkeys((breaks[-1], breaks[0])) if breaks else ():
        if any(alias.endswith(subject[place + 1 :]) for alias in edit.aliases):
            continue
        others = [name + subject[place:] for name in names if name not in subject]
        forms = [Form("keep", named_otherwise(edit, other), other, "", (Context(),)) for other in others]
        if forms:
            found.append(forms)
    return found


def proper_names(tokenizer: Any, count: int) -> list[str]:
    """`count` names that the tokenizer writes as one token, drawn with a fixed seed; fewer where it has fewer.

    A name is a word that begins with a capital and has no token in small letters.
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
