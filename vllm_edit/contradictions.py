"""Rules of a declared patch that records of data sets often break: probes that contradict their edit, and bad prompts.

They are checked where a person's file is read, and not for data sets, whose records are measured as published.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vllm_edit.text.matching import is_whole, normalise
from vllm_edit.text.quoting import quoted
from vllm_edit.text.spelling import written

if TYPE_CHECKING:
    from vllm_edit.patch import Edit, Probe

_PLACEHOLDERS = ("{}", "{subject}")
_LINES = "\n\t"
"""Control characters that a text may have."""
_ENDS = " .。"
"""What may follow an answer that ends a sentence. A question may end with one of its answers."""


def contradictions(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Indices of edits that no compiling can satisfy, or that no gate can judge, with the reasons."""
    for number, edit in enumerate(edits):
        for problem in (*_of_texts(edit), *_of_prompt(edit), *_of_probes(edit)):
            yield number, problem


def _of_texts(edit: Edit) -> Iterator[str]:
    texts = [edit.prompt, edit.relation, *edit.aliases, *edit.new_answers, *edit.old_answers]
    texts += [text for probe in edit.probes for text in (probe.prompt, probe.tag, *probe.answers)]
    for text in dict.fromkeys(texts):
        if any(unicodedata.category(character) == "Cc" and character not in _LINES for character in text):
            yield f"{quoted(text)} has a control character, which no answer or question has; remove it"
    for prompt in (edit.prompt, *(probe.prompt for probe in edit.probes)):
        for placeholder in _PLACEHOLDERS:
            if placeholder in prompt:
                yield f"{placeholder} is not filled in the prompt {quoted(prompt)}; write the subject itself"


def _of_prompt(edit: Edit) -> Iterator[str]:
    text = written(edit.prompt).folded.rstrip(_ENDS)
    for answer in (*edit.new_answers, *edit.old_answers):
        wanted = normalise(answer)
        start = len(text) - len(wanted)
        within_subject = text.endswith(normalise(edit.subject)) and len(wanted) <= len(normalise(edit.subject))
        if wanted and text.endswith(wanted) and is_whole(text, start, len(text)) and not within_subject:
            yield f"the prompt {quoted(edit.prompt)} ends with the answer {answer!r}; end it right before the answer"


def _of_probes(edit: Edit) -> Iterator[str]:
    old = {normalise(answer) for answer in edit.old_answers}
    seen: dict[tuple[str, bool], Probe] = {}
    for number, probe in enumerate(edit.probes):
        asked = normalise(probe.prompt)
        if probe.keeps and asked == normalise(edit.prompt):
            yield f"probes.{number}: a {probe.kind} probe keeps its answer, but asks the prompt that the edit changes"
        if probe.kind == "paraphrase":
            for answer in probe.answers:
                if normalise(answer) in old:
                    yield f"probes.{number}: a paraphrase expects the new answer, and {answer!r} is the old answer"
        earlier = seen.setdefault((asked, probe.chat), probe)
        if earlier.split != probe.split:
            yield (
                f"probes.{number}: {quoted(probe.prompt)} is a probe of both tune and gate, so the gate would measure "
                "what was trained; keep one of the two"
            )
