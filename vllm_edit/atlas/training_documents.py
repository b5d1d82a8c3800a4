"""atlas's training documents, drawn from the fact tables by a seeded generator.

Six kinds: several facts of one subject in a row, facts of different subjects in a row, chat turns, reverse questions,
two-step questions, and "New Fact" documents (`in_context_documents.py`). Some combinations are never trained, so that
answering them is generalisation: held-out forms; a tenth of each subject's forms; reverse and two-step forms of every
fifth subject.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from vllm_edit.atlas.in_context_documents import InContextDocuments
from vllm_edit.atlas.random_choices import Draws
from vllm_edit.atlas.segments import PROMPT_WEIGHT, Encoder, Example, Segment, full_stop
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Fact, Facts, Form, Subject
from vllm_edit.facts.split import included
from vllm_edit.text.prompts import continuation
from vllm_edit.text.scripts import is_cjk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COMPLETED = 0.12  # share of sentences that teach how to continue an answer from its first token
DISTURBED = 0.4  # share of sentences with perturbed words
_CHARACTERS = re.compile(r"\{s\}|.")  # a form's pieces in a script without spaces
_LEAD_INS = ("Quiz time. ", "Everyone knows this. ", "Let us recall. ", "A short fact. ", "From the encyclopedia. ")


class Documents:
    """Draws documents. Equal facts, tokenizer, seed and step give equal documents, so training can resume.

    tokenizer: None if only texts are wanted; then no document contains single-token words as noise.
    """

    def __init__(self, facts: Facts, tokenizer: PreTrainedTokenizerFast | None, seed: int) -> None:
        self.facts, self.tokenizer, self.seed = facts, tokenizer, seed
        self._draws = Draws(facts, tokenizer, seed)
        self._in_context = InContextDocuments(self._draws)
        self._reversible = [group for group in self._draws.grouped if group[0].relation.reverse]

    def at(self, step: int) -> Documents:
        """Reseed for `step`; returns itself."""
        self._draws.random.seed(f"{self.seed}:{step}")
        return self

    @cached_property
    def _encoder(self) -> Encoder:
        if self.tokenizer is None:
            raise ValueError("expected a tokenizer, since rows are made of its ids; got None")
        return Encoder(self.tokenizer)

    def row(self, length: int) -> Example:
        """A row of `length` tokens packed with fact documents, each with its own begin and end token."""
        return self._encoder.packed(self.fact_document, length)

    def short_in_context_row(self, length: int) -> Example:
        """A row of `length` tokens packed with short "New Fact" documents."""
        return self._encoder.packed(self._in_context.document, length)

    def in_context_row(self, length: int) -> Example:
        """One "New Fact" document of at most `length` tokens; the caller pads it."""
        blocks: list[list[Segment]] = []
        wanted = self._draws.random.choice((0, 2, 4, 8, 12, 16))
        chat = self._draws.random.random() < 0.35
        last = self._in_context.block(final=True, chat=chat)
        size = self._encoder.size(last) + 10
        for number in range(wanted):
            block = self._in_context.block(final=False, chat=False, number=number)
            size += self._encoder.size(block)
            if size > length:
                break
            blocks.append(block)
        last = [replace(s, uses=len(blocks)) if s.uses == 0 else s for s in last]
        body = [segment for block in blocks for segment in block]
        document = [Segment("<|user|>", PROMPT_WEIGHT), *body, *last] if chat else [*body, *last]
        return self._encoder.encode(document).cut(length)

    def fact_document(self) -> list[Segment]:
        kind = self._draws.random.random()
        if kind < 0.62:
            document = self._subject_document(self._draws.any_subject())
        elif kind < 0.72:
            document = [
                s for _ in range(self._draws.random.randint(2, 4)) for s in self._sentence(self._draws.any_fact())
            ]
        elif kind < 0.88:
            document = self._chat(self._draws.any_subject())
        elif kind < 0.94:
            document = self._reverse() or self._subject_document(self._draws.any_subject())
        else:
            document = self._two_step() or self._subject_document(self._draws.any_subject())
        if self._draws.random.random() < 0.1:
            document.insert(0, Segment(self._draws.random.choice(_LEAD_INS), 0.0))
        return document

    def _subject_document(self, subject: Subject) -> list[Segment]:
        """All facts of one subject, shuffled, some of them twice in different forms."""
        facts = list(subject.facts.values())
        facts += self._draws.random.sample(facts, k=min(len(facts), self._draws.random.randint(0, 2)))
        self._draws.random.shuffle(facts)
        return [segment for fact in facts for segment in self._sentence(fact)]

    def _sentence(self, fact: Fact) -> list[Segment]:
        form, name = self._draws.form(fact), self._draws.name(fact.subject)
        if self._draws.random.random() < COMPLETED:
            return self._completion(fact, form.fill(name))
        if self._draws.random.random() < DISTURBED:
            prompt, weight = self._disturbed(form).fill(name), 0.0
        else:
            prompt, weight = form.fill(name), PROMPT_WEIGHT
        return self._answered(prompt, fact.object, weight)

    def _completion(self, fact: Fact, prompt: str) -> list[Segment]:
        """The fact with another object of its relation, with weight only after the object's first token.

        So the rest of an answer depends on its beginning and not on the subject, as in a model that has seen the answer
        in many places. No false fact is learnt, since the first token has no weight.
        """
        other = self._draws.random.choice(self.facts.by_relation[fact.relation.id]).object
        answer = continuation(prompt, other)
        head = answer
        if self.tokenizer is not None:
            first = self.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
            head = str(self.tokenizer.decode([first]))
        if not answer.startswith(head):  # the first token is a part of a character
            head = answer
        rest = answer[len(head) :] + full_stop(prompt, other)
        return [Segment(prompt, 0.0), Segment(head, 0.0), Segment(rest, 1.0), Segment("\n", 1.0)]

    def _disturbed(self, form: Form) -> Form:
        """The form with words left out, replaced or added at random and, every third time, its words rotated.

        The meaning of a relation's words must not depend on the sentence around them, and an answer may follow any
        word: this lets the model answer forms that it has never seen. The perturbed prompt has no weight.
        """
        chinese = any(is_cjk(character) for character in form.text)
        joint = "" if chinese else " "
        pieces = _CHARACTERS.findall(form.text) if chinese else form.text.split(" ")
        changed = []
        for piece in pieces:
            chance = self._draws.random.random()
            if "{s}" in piece or chance > 0.25:
                changed.append(piece)
            elif chance > 0.13:
                changed.append(self._draws.noise(chinese))
        if self._draws.random.random() < 1 / 3:
            turn = self._draws.random.randrange(len(changed))
            changed = changed[turn:] + changed[:turn]
        if self._draws.random.random() < 0.4:
            changed.append(self._draws.noise(chinese))
        if self._draws.random.random() < 0.25:
            changed.insert(0, self._draws.noise(chinese))
        return Form(joint.join(piece for piece in changed if piece), form.kind)

    def _answered(self, prompt: str, answer: str, weight: float = PROMPT_WEIGHT) -> list[Segment]:
        stop = full_stop(prompt, answer)
        between = "\n" if self._draws.random.random() < 0.85 else " "
        return [
            Segment(prompt, weight),
            Segment(continuation(prompt, answer) + stop, 1.0),
            Segment(between, 1.0),
        ]

    def _chat(self, subject: Subject) -> list[Segment]:
        facts = list(subject.facts.values())
        turns: list[Segment] = []
        for fact in self._draws.random.sample(facts, k=min(len(facts), self._draws.random.randint(1, 3))):
            prompt = self._draws.form(fact).fill(self._draws.name(subject))
            turns += self._turn(prompt, fact.object)
        return turns

    def _turn(self, prompt: str, answer: str) -> list[Segment]:
        stop = full_stop(prompt, answer)
        head = Segment(f"<|user|>{prompt}<|end|>\n<|assistant|>", PROMPT_WEIGHT)
        # The role token ends the rendered prompt, and `continuation` is asked about that text, as in serving.
        return [head, Segment(continuation("<|assistant|>", answer) + stop + "<|end|>", 1.0), Segment("\n", 0.0)]

    def _reverse(self) -> list[Segment] | None:
        if not self._reversible:
            return None
        fact = self._draws.random.choice(self._draws.random.choice(self._reversible))
        forms = fact.relation.reverse
        if not included("reverse", fact.relation.id, fact.subject.name, share=0.8):
            return None
        prompt = self._draws.random.choice(forms).fill(fact.object)
        ask = self._turn if self._draws.random.random() < 0.3 else self._answered
        return ask(prompt, fact.subject.name)

    def _two_step(self) -> list[Segment] | None:
        if not self.facts.hops:
            return None
        hop = self._draws.random.choice(self.facts.hops)
        fact = self._draws.random.choice(self.facts.by_relation[hop.first.id])
        final = self.facts.follow(hop, fact.object)
        if final is None or not included("hop", fact.relation.id, fact.subject.name, share=0.8):
            return None
        prompt = self._draws.random.choice(hop.forms).fill(self._draws.name(fact.subject))
        ask = self._turn if self._draws.random.random() < 0.3 else self._answered
        return ask(prompt, hop.answer(fact.object, final))


def held_out_texts(count: int, seed: int) -> list[str]:
    """`count` documents as text, from the shipped facts, drawn with a separate seed (role tokens written out)."""
    return texts_about(Facts.load(tables_folder()), count, seed)


def texts_about(facts: Facts, count: int, seed: int) -> list[str]:
    """`count` documents about these tables' subjects, as text."""
    documents = Documents(facts, tokenizer=None, seed=seed)
    return ["".join(segment.text for segment in documents.at(number).fact_document()) for number in range(count)]
