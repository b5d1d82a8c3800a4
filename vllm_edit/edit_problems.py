"""Problems of edits that are each valid, but cannot be in one patch, or cannot be judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vllm_edit.edit import Edit, Fact, Probe, lacks_subject
from vllm_edit.text.first_line import can_be_given
from vllm_edit.text.matching import is_whole, normalise, occurrences, searched
from vllm_edit.text.quoting import quoted
from vllm_edit.text.spelling import Name, written

_PLACEHOLDERS = ("{}", "{subject}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENDS = " .。"
"""What may follow an answer that ends a sentence. A question may end with one of its answers."""


def problems_of_edits(edits: Sequence[Edit], *, searched: bool) -> Iterator[tuple[int, str]]:
    """Indices of edits that cannot be in one patch, or cannot be judged, with the reasons.

    searched: the subjects' names are searched in requests, as with scope subject.
    """
    yield from _within_words(edits)
    yield from _edited_twice(edits)
    yield from _not_judged(edits)
    yield from _names_nothing(edits, searched)


def contradictions(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits that no compiling can satisfy, or that no gate can judge, as a person may declare them by mistake."""
    for number, edit in enumerate(edits):
        for problem in (*_of_texts(edit), *_of_prompt(edit), *_of_probes(edit)):
            yield number, problem


def _within_words(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits whose subject would be found only within a longer word."""
    for number, edit in enumerate(edits):
        if not occurrences(edit.prompt, edit.subject):
            yield number, lacks_subject(edit.subject, edit.prompt)


def _not_judged(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits with an answer that no text can give, or with an answer that is both new and old."""
    for number, edit in enumerate(edits):
        probed = (answer for probe in edit.probes for answer in probe.answers)
        for answer in (*edit.new_answers, *edit.old_answers, *probed):
            if not normalise(answer):
                yield (
                    number,
                    f"the answer {answer!r} is punctuation alone, or invisible, so no text can give it",
                )
            elif not can_be_given(answer):
                yield (
                    number,
                    f"the answer {quoted(answer)} is more than one line, or has marks of thinking, and only the first "
                    "line after the thinking is judged: write the answer in one line",
                )
        old = {normalise(answer): answer for answer in edit.old_answers}
        for alias in edit.target_new_aliases:
            if other := old.get(normalise(alias)):
                yield (
                    number,
                    f"{alias!r} of target_new_aliases is also the current answer ({other!r}): remove one of the two",
                )


def _names_nothing(edits: Sequence[Edit], searched: bool) -> Iterator[tuple[int, str]]:
    """Edits with a name that no text can mention. Punctuation may be a name if names are not searched."""
    for number, edit in enumerate(edits):
        for name in (edit.subject, *edit.aliases):
            if not (Name.of(name) if searched else written(name)).folded.strip():
                yield number, f"no text can mention the name {name!r}, which is punctuation alone or invisible"


def _edited_twice(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits of a fact that an earlier edit also changes, in any spelling and by any name.

    Two subjects may share an alias if their edits have the same answer.
    """
    seen: dict[Fact, int] = {}
    for number, edit in enumerate(edits):
        owners = {seen.setdefault(fact, number) for fact in edit.facts()} - {number}
        for earlier in sorted(owners):
            other = edits[earlier]
            agrees = edit.agrees_with(other)
            if edit.shares_subject_with(other) or not agrees:
                how = "twice" if agrees else f"to two different targets, also to {quoted(other.target_new)}"
                fact = f"subject {edit.subject!r}, relation {edit.relation or edit.prompt!r}"
                yield number, f"{fact} is edited {how} (see edits.{earlier}, of {other.subject!r})"
                break


def _of_texts(edit: Edit) -> Iterator[str]:
    texts = [edit.prompt, edit.relation, *edit.aliases, *edit.new_answers, *edit.old_answers]
    texts += [text for probe in edit.probes for text in (probe.prompt, probe.tag, *probe.answers)]
    for text in dict.fromkeys(texts):
        if _CONTROL.search(text):
            yield f"{quoted(text)} has a control character, which no answer or question has; remove it"
    for prompt in (edit.prompt, *(probe.prompt for probe in edit.probes)):
        for placeholder in _PLACEHOLDERS:
            if placeholder in prompt:
                yield f"{placeholder} is not filled in the prompt {quoted(prompt)}; write the subject itself"


def _of_prompt(edit: Edit) -> Iterator[str]:
    prompt = written(edit.prompt)
    text = prompt.folded.rstrip(_ENDS)
    ends = prompt.ends[: len(text)]
    for answer in (*edit.new_answers, *edit.old_answers):
        wanted = searched(answer)
        start = len(text) - len(wanted)
        within_subject = text.endswith(normalise(edit.subject)) and len(wanted) <= len(normalise(edit.subject))
        if wanted and text.endswith(wanted) and is_whole(ends, start, len(text)) and not within_subject:
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
