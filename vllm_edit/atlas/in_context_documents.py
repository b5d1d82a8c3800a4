"""Documents with a new fact and questions about it, which teach the use of in-context facts (the format of IKE)."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.atlas.random_choices import Draws
from vllm_edit.atlas.segments import PROMPT_WEIGHT, Segment, full_stop
from vllm_edit.facts.facts import Fact
from vllm_edit.ike.template import fact_text, query
from vllm_edit.text.prompts import continuation

NEW_FACT = "New Fact: "
TOLD_WEIGHT = 2.0  # weight of an answer, which is short compared with its context
SEVERAL = 0.5  # share of the short documents with several facts of one relation


class InContextDocuments:
    """Draws "New Fact" documents and blocks of them."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def document(self) -> list[Segment]:
        """A "New Fact" document without demonstrations: of one block, or of several facts and questions about them."""
        if self._draws.random.random() < SEVERAL:
            return self._several_facts()
        chat = self._draws.random.random() < 0.35
        block = self.block(final=True, chat=chat)
        return [Segment("<|user|>", PROMPT_WEIGHT), *block] if chat else block

    def _several_facts(self) -> list[Segment]:
        """Two or three new facts of one relation, and a question about each subject (rarely about another).

        The relation does not identify the object here, only the subject does.
        """
        peers = self._draws.random.choice(self._draws.grouped)
        facts = self._draws.random.sample(peers, k=min(len(peers), self._draws.random.randint(2, 3)))
        objects = [self._draws.random.choice(peers).object for _ in facts]
        document = []
        for fact, new in zip(facts, objects, strict=True):
            form = self._draws.random.choice(fact.relation.trained)
            text, tells = _telling(form.fill(fact.subject.name), new)
            document.append(Segment(text + "\n", 0.0, tells=tells))
        asked = [(fact, new, place) for place, (fact, new) in enumerate(zip(facts, objects, strict=True))]
        if self._draws.random.random() < 0.3:
            other = self._draws.random.choice(peers)
            asked += [] if other in facts else [(other, other.object, -1)]
        for fact, answer, place in self._draws.shuffled(asked):
            prompt = f"Prompt: {self._draws.form(fact).fill(self._draws.name(fact.subject))}"
            document += [
                Segment(prompt, 0.0),
                Segment(continuation(prompt, answer), TOLD_WEIGHT, uses=place),
                Segment("\n", 1.0),
            ]
        return document

    def block(self, *, final: bool, chat: bool, number: int = 0) -> list[Segment]:
        """One "New Fact" block: copy, update or retain (IKE's three kinds), answered; the document's `number`th."""
        fact = self._draws.any_fact()
        peers = self._draws.facts.by_relation[fact.relation.id]
        new = self._draws.random.choice(peers).object
        statement, tells = _telling(self._draws.random.choice(fact.relation.trained).fill(fact.subject.name), new)
        asked, answer, used = self._asked(fact, new, peers)
        # The invented fact itself must not be learnt, so neither it nor the prompt has weight.
        prompt = query(statement.removeprefix(NEW_FACT), asked)
        uses = number if used else -1
        if chat:
            stop = full_stop(asked, answer)
            head = Segment(prompt + "<|end|>\n<|assistant|>", 0.0, tells=tells)
            return [head, Segment(continuation("<|assistant|>", answer) + stop + "<|end|>", TOLD_WEIGHT, uses=uses)]
        end = Segment("\n" if final else "\n\n", 1.0)
        return [Segment(prompt, 0.0, tells=tells), Segment(continuation(prompt, answer), TOLD_WEIGHT, uses=uses), end]

    def _asked(self, fact: Fact, new: str, peers: Sequence[Fact]) -> tuple[str, str, bool]:
        """The block's prompt, its answer and whether the new fact holds it: 20 % copy, 35 % update, 45 % retain."""
        kind = self._draws.random.random()
        name = fact.subject.name
        if kind < 0.2:
            return (
                next(f for f in self._draws.shuffled(fact.relation.trained) if f.kind == "statement").fill(name),
                new,
                True,
            )
        if kind < 0.55:
            return self._draws.form(fact).fill(self._draws.name(fact.subject)), new, True
        others = [other for other in fact.subject.facts.values() if other is not fact]
        if kind < 0.68 and others:
            other = self._draws.random.choice(others)
        else:
            other = self._draws.random.choice(peers) if kind < 0.9 else self._draws.any_fact()
        return (
            self._draws.form(other).fill(self._draws.name(other.subject)),
            new if other is fact else other.object,
            other is fact,
        )


def _telling(prompt: str, answer: str) -> tuple[str, int]:
    """The text of a new fact, and the position of its object in the text."""
    return NEW_FACT + fact_text(prompt, answer), len(NEW_FACT + prompt)
