"""Converts a record to the fields of its edits; the record's field names determine its form.

Locality of the same subject (KnowEdit's Relation_Specificity and Forgetfulness) becomes `locality_subject`, neighbours
become `locality`, and zsRE's unrelated questions `unrelated`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_edit.datasets.values import NoEdit, Record, answers_of, asked, mapping, old_answers_of, shown, text_of, texts
from vllm_edit.json_value import JSONValue
from vllm_edit.text.first_line import can_be_given
from vllm_edit.text.matching import normalise, occurrences, spelled
from vllm_edit.text.quoting import quoted

_PROMPT, _SUBJECT = ("prompt", "src", "text"), ("subject", "concept")
_NEW, _OLD = ("target_new", "alt", "labels"), ("ground_truth", "target_true", "answers")
_PARAPHRASES = ("rephrase_prompt", "rephrase_prompts", "rephrase", "paraphrase_prompts")
_NEIGHBOURS = ("neighborhood", "distracting")
"""EasyEdit's locality groups about other subjects, unlike KnowEdit's."""
_NQ = "nq question: "
_MOST_FIELDS = 12
FORMS = (
    "requested_rewrite (CounterFact, MQuAKE); prompt, subject, target_new (CounterFact, ROME, KnowEdit); "
    "src, subject, alt (zsRE); text, concept, labels (WikiBio)"
)
"""The known forms, for messages."""

Fields = dict[str, object]
"""An edit's fields, or a probe's, not yet validated."""


def edits_in(record: JSONValue) -> list[Fields]:
    """The edits of a record: several for MQuAKE, otherwise one.

    Raises:
        NoEdit: the record has no known form, or lacks a field that an edit needs.
    """
    if not isinstance(record, dict):
        raise NoEdit(f"expected a mapping, got {shown(record)}")
    rewrites = record.get("requested_rewrite")
    if isinstance(rewrites, dict):
        return [_nested(record, rewrites)]
    if isinstance(rewrites, list):
        return _several(record, rewrites)
    if not all(any(name in record for name in names) for names in (_PROMPT, _SUBJECT, _NEW)):
        names = [name if name.isprintable() else quoted(name) for name in list(record)[:_MOST_FIELDS]]
        raise NoEdit(f"it has the fields {', '.join(names) or '(none)'}; expected one of: {FORMS}")
    return [_flat(record)]


def _nested(record: Record, rewrite: Record) -> Fields:
    """CounterFact's own form (Meng et al. 2022): requested_rewrite, paraphrase_prompts, neighborhood_prompts."""
    old = old_answers_of(rewrite, "target_true")
    return _rewritten(
        rewrite,
        answers_of(rewrite, "target_new"),
        old,
        [*_paraphrases(record.get("paraphrase_prompts")), *_neighbours(record, old)],
    )


def _several(record: Record, rewrites: Sequence[JSONValue]) -> list[Fields]:
    """MQuAKE (Zhong et al. 2023): several rewrites, and questions whose new answer follows from all of them."""
    if not rewrites:
        raise NoEdit("requested_rewrite: expected at least one rewrite, got an empty list")
    before, after = (_named(record.get(hops)) for hops in ("single_hops", "new_single_hops"))
    edits = []
    for number, rewrite in enumerate(map(mapping, rewrites)):
        try:
            new, old = answers_of(rewrite, "target_new"), old_answers_of(rewrite, "target_true")
            probes = list(_paraphrases(rewrite.get("question")))
            if number == 0:
                followed = texts([record.get("new_answer"), record.get("new_answer_alias")])
                questions = ((question, followed) for question in texts(record.get("questions")))
                probes += _probes("portability", questions, "multi_hop")
            edits.append(_rewritten(rewrite, _with_names(new, after), _with_names(old, before), probes))
        except NoEdit as error:
            raise NoEdit(f"requested_rewrite.{number}: {error}") from None
    return edits


def _rewritten(rewrite: Record, new: tuple[str, ...], old: tuple[str, ...], probes: list[Fields]) -> Fields:
    subject = text_of(rewrite, "subject")
    relation = next(iter(texts(rewrite.get("relation_id"))), "")
    return _edit(text_of(rewrite, "prompt").replace("{}", subject), subject, new, old, probes, relation)


def _flat(record: Record) -> Fields:
    """All other forms: one mapping with the edit's fields and its probes."""
    prompt, subject = text_of(record, *_PROMPT), text_of(record, *_SUBJECT)
    if not occurrences(prompt, subject):
        prompt = prompt.replace("{}", subject)  # ROME's requests
    new, old = answers_of(record, *_NEW), old_answers_of(record, *_OLD)
    probes = [probe for name in _PARAPHRASES for probe in _paraphrases(record.get(name))]
    probes += _neighbours(record, old)
    for kind in ("locality", "portability"):
        probes += _probes(kind, _pair(record, f"{kind}_prompt", f"{kind}_ground_truth"))
    probes += _probes("unrelated", _pair(record, "loc", "loc_ans"))
    probes += _groups("portability", record.get("portability"))
    probes += _groups("locality_subject", record.get("locality"))
    return _edit(prompt, subject, new, old, probes, next(iter(texts(record.get("relation_id"))), ""))


def _edit(
    prompt: str, subject: str, new: tuple[str, ...], old: tuple[str, ...], probes: list[Fields], relation: str
) -> Fields:
    name = spelled(prompt, subject)
    if name is None:
        raise NoEdit(f"subject: {quoted(subject)} is not a whole word of the prompt {quoted(prompt)}")
    former = {normalise(answer) for answer in old}
    # An alias of both answers cannot distinguish them.
    new = new[:1] + tuple(alias for alias in new[1:] if normalise(alias) not in former)
    return {
        "prompt": prompt,
        "subject": name,
        "relation": relation,
        **_named_target("target_new", new),
        **_named_target("target_true", old),
        "probes": probes,
    }


def _named_target(field: str, answers: tuple[str, ...]) -> Fields:
    return {field: answers[0], f"{field}_aliases": answers[1:]} if answers else {}


def _paraphrases(value: JSONValue) -> Iterator[Fields]:
    for prompt in texts(value):
        yield {"kind": "paraphrase", "prompt": prompt}


def _neighbours(record: Record, old: tuple[str, ...]) -> Iterator[Fields]:
    """CounterFact's neighbours, whose answer is the edit's old one."""
    for prompt in texts(record.get("neighborhood_prompts")):
        yield {"kind": "locality", "prompt": prompt, **_named_target("target", old)}


def _pair(record: Record, prompt: str, answer: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The prompt of one field with the answers of another."""
    for text in texts(record.get(prompt))[:1]:
        yield text.removeprefix(_NQ), texts(record.get(answer))


def _groups(kind: str, value: JSONValue) -> Iterator[Fields]:
    """Probes of named groups, tagged with their group's name. A single group may be unnamed."""
    groups = mapping(value)
    if isinstance(value, list) or "New Question" in groups or "prompt" in groups:
        yield from _probes(kind, asked(value))
        return
    for name, group in groups.items():
        yield from _probes("locality" if name in _NEIGHBOURS else kind, asked(group), name.lower())


def _probes(kind: str, pairs: Iterable[tuple[str, tuple[str, ...]]], tag: str = "") -> Iterator[Fields]:
    """Portability probes without an answer cannot be judged and are left out; keeping probes need no answer."""
    for prompt, said in pairs:
        answers = tuple(filter(can_be_given, said))
        if answers or kind != "portability":
            yield {"kind": kind, "prompt": prompt, **_named_target("target", answers), "tag": tag}


def _named(hops: JSONValue) -> Mapping[str, tuple[str, ...]]:
    """Answers of MQuAKE's single hops → their aliases."""
    return {
        answer: texts(hop.get("answer_alias"))
        for hop in map(mapping, hops if isinstance(hops, list) else ())
        for answer in texts(hop.get("answer"))
    }


def _with_names(answers: tuple[str, ...], names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*answers, *(alias for answer in answers for alias in names.get(answer, ()))]))
