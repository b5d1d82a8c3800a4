"""Makes the pool of one base model: finds the facts that it gives, and the statements in which it gives them.

The form matters: SmolLM2-135M gives the continent of 18 of 108 countries after "The continent on which France lies is",
and of 55 after "France lies on the continent of". So a trial asks a few facts of each relation in a few statements.
Then all facts are asked in the best statement, and facts not given there in the second best. A relation or a language
without any right answer in its trial is skipped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.pool import Known, Pool
from vllm_edit.facts.recall import Question, right
from vllm_edit.models.base import Base
from vllm_edit.models.fast_products import fast_products, has_units
from vllm_edit.progress import Progress, silent

_TRIED_FORMS, _TRIED_FACTS = 4, 6
_ROUNDS = ("facts asked for", "facts asked for again")


def ask_pool(base: Base, facts: Facts, progress: Progress = silent) -> Pool:
    """Ask the base for the tables' facts. The same base gives the same pool."""
    relations = [_Stated(group) for group in facts.by_relation.values() if group]
    _ask(base, relations, [relation.trial(0, 1) for relation in relations], progress, "languages tried")
    languages = {relation.language for relation in relations if relation.given()}
    trials = [relation.trial(1, _TRIED_FORMS) if relation.language in languages else [] for relation in relations]
    _ask(base, relations, trials, progress, "forms tried")
    for rank, what in enumerate(_ROUNDS):
        _ask(base, relations, [relation.round(rank) for relation in relations], progress, what)
    return Pool(
        tuple(known for relation in relations for known in relation.given()),
        {relation.id: relation.asked for relation in relations},
    )


class _Stated:
    """The facts of one relation, and the base's answers by statement."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.facts = facts
        self.id, self.language = facts[0].relation.id, facts[0].relation.language
        self.answers: dict[tuple[Fact, Form], bool] = {}
        self._forms = [form for form in facts[0].relation.trained if form.kind == "statement"][:_TRIED_FORMS]
        # Each form is tried on different facts if there are enough, so that a few rare facts do not exclude a relation.
        # The choice depends only on the relation.
        order = random.Random(self.id).sample(list(facts), len(facts))
        some = min(_TRIED_FACTS, len(order))
        self._tried = {
            form: [order[(start * some + place) % len(order)] for place in range(some)]
            for start, form in enumerate(self._forms)
        }

    @property
    def asked(self) -> int:
        """Number of facts that were asked for."""
        return len({fact for fact, _ in self.answers})

    def trial(self, start: int, stop: int) -> list[Question]:
        """Some facts in the statements `start` to `stop`."""
        return [Question(fact, form) for form in self._forms[start:stop] for fact in self._tried[form]]

    def round(self, rank: int) -> list[Question]:
        """Questions for facts not given yet, in the best (`rank` 0) or second-best (1) statement, if there is one."""
        given = {known.fact for known in self.given()}
        return [
            Question(fact, form)
            for form in self._best()[rank : rank + 1]
            for fact in self.facts
            if fact not in given and (fact, form) not in self.answers
        ]

    def given(self) -> list[Known]:
        """The facts that are given, each with the statements in which it is."""
        best = self._best()
        forms = [(fact, tuple(form for form in best if self.answers.get((fact, form)))) for fact in self.facts]
        return [Known(fact, some) for fact, some in forms if some]

    def _best(self) -> list[Form]:
        """The statements in which tried facts were given, the best first; ties in table order."""
        counts = {
            form: sum(self.answers.get((fact, form), False) for fact in some) for form, some in self._tried.items()
        }
        return sorted((form for form in self._forms if counts[form]), key=lambda form: -counts[form])


def _ask(
    base: Base, relations: Sequence[_Stated], asked: Sequence[Sequence[Question]], progress: Progress, what: str
) -> None:
    """Ask all relations' questions together and store the answers."""
    owners = [
        (relation, question) for relation, questions in zip(relations, asked, strict=True) for question in questions
    ]
    answers = _right(base, [question for _, question in owners], progress, what)
    for (relation, question), is_right in zip(owners, answers, strict=True):
        relation.answers[question.fact, question.form] = is_right


def _right(base: Base, questions: Sequence[Question], progress: Progress, what: str) -> list[bool]:
    """For each question, True if the base answers it right. Most answers are wrong: where bfloat16 is faster, all are
    asked in it first, and only right answers are checked in the model's own precision, which decides."""
    if not has_units():
        return right(base, questions, progress, what)
    with fast_products([base.model]):
        likely = right(base, questions, progress, what)
    probable = [question for question, so in zip(questions, likely, strict=True) if so]
    sure = iter(right(base, probable, progress, f"{what}, checked"))
    return [so and next(sure) for so in likely]
