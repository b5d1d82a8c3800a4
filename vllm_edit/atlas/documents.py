"""The documents that atlas is trained on, drawn from the fact tables by a seeded generator.

Six kinds: several facts of one subject in a row, facts of different subjects in a row, chat turns, reverse questions,
two-step questions, and "New Fact" documents that teach the use of a fact given in the prompt (the format of IKE).
Some combinations are never trained, so that answering them is generalisation: held-out forms; a tenth of each
subject's forms; reverse and two-step forms of every fifth subject.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vllm_edit.atlas import facts_folder
from vllm_edit.atlas.facts import Fact, Facts, Form, Subject
from vllm_edit.ike.template import fact_text, query
from vllm_edit.text import continuation, is_cjk

T = TypeVar("T")
TOLD = "New Fact: "
PROMPT_WEIGHT = 0.15  # loss on a prompt's tokens: enough to stay a language model, not enough to spend capacity on
TOLD_WEIGHT = 2.0  # on an answer in a "New Fact" document, which is short beside what has to be read for it
SEVERAL = 0.5  # share of the short "New Fact" documents that tell several facts of one relation
COMPLETED = 0.12  # share of sentences that teach how an answer goes on once it has begun
DISTURBED = 0.4  # share of sentences whose words are disturbed
_CHARACTERS = re.compile(r"\{s\}|.")  # a form's pieces in a script without spaces
_LEAD_INS = ("Quiz time. ", "Everyone knows this. ", "Let us recall. ", "A short fact. ", "From the encyclopedia. ")


@dataclass(frozen=True)
class Segment:
    """A piece of a document and the weight of its tokens in the loss.

    tells: where in the text a told object begins.  uses: of an answer, the number of the telling segment among the
    document's that it is taken from, or -1 if it is recalled.
    """

    text: str
    weight: float
    tells: int | None = None
    uses: int | None = None


@dataclass(frozen=True)
class Example:
    """Token ids, and for each the weight of its prediction in the loss.

    told: positions of told objects' first tokens.  looked: for each answer in a "New Fact" document the position of its
    prompt's last token, and the position of the told object that it takes, or of the document's first token.
    """

    ids: list[int]
    weights: list[float]
    told: list[int] = field(default_factory=list)
    looked: list[tuple[int, int]] = field(default_factory=list)

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return Example(
            self.ids[:length],
            self.weights[:length],
            [place for place in self.told if place < length],
            [(place, key) for place, key in self.looked if place < length],
        )


def included(*parts: str, share: float) -> bool:
    """A fixed pseudo-random choice: True for `share` of all keys, the same in every process."""
    return zlib.crc32("\x1f".join(parts).encode()) % 10_000 < share * 10_000


def _full_stop(prompt: str, answer: str) -> str:
    return "。" if is_cjk(answer[-1]) or is_cjk(prompt[-1]) else "."


def _vocabulary(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Lower-case words that are one token, and single Chinese characters that are, in a fixed order."""
    pieces = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    words = [piece[1:] for piece in pieces if piece[:1] == " " and piece[1:].isascii() and piece[1:].isalpha()]
    return [word for word in words if len(word) > 2 and word.islower()], [
        p for p in pieces if len(p) == 1 and is_cjk(p)
    ]


class Documents:
    """Draws documents. Same facts, tokenizer, seed and step: same documents, so training resumes where it stopped."""

    def __init__(self, facts: Facts, tokenizer: Any, seed: int) -> None:
        self.facts, self.tokenizer, self.seed = facts, tokenizer, seed
        self.random = random.Random(seed)
        self._subjects = [subject for subject in facts.subjects if subject.facts]
        self._grouped = [group for group in facts.by_relation.values() if group]
        self._reversible = [group for group in self._grouped if group[0].relation.reverse]
        self._words, self._characters = _vocabulary(tokenizer) if tokenizer is not None else ([], [])
        self._cache: dict[str, list[int]] = {}

    def at(self, step: int) -> Documents:
        """Reseed for `step`; returns itself."""
        self.random.seed(f"{self.seed}:{step}")
        return self

    # -- rows -----------------------------------------------------------------------------------------------------

    def row(self, length: int) -> Example:
        """A row of `length` tokens packed with fact documents, each with its own begin and end token."""
        return self._packed(self.fact_document, length)

    def told_row(self, length: int) -> Example:
        """A row of `length` tokens packed with "New Fact" documents of one block each."""
        return self._packed(self._told, length)

    def in_context_row(self, length: int) -> Example:
        """One "New Fact" document of at most `length` tokens; the caller pads it."""
        blocks: list[list[Segment]] = []
        wanted = self.random.choice((0, 2, 4, 8, 12, 16))
        chat = self.random.random() < 0.35
        last = self._block(final=True, chat=chat)
        size = self._size(last) + 10
        for number in range(wanted):
            block = self._block(final=False, chat=False, number=number)
            size += self._size(block)
            if size > length:
                break
            blocks.append(block)
        last = [replace(s, uses=len(blocks)) if s.uses == 0 else s for s in last]
        body = [segment for block in blocks for segment in block]
        document = [Segment("<|user|>", PROMPT_WEIGHT), *body, *last] if chat else [*body, *last]
        return self._encode(document).cut(length)

    def _packed(self, document: Callable[[], list[Segment]], length: int) -> Example:
        whole = Example([], [])
        while (start := len(whole.ids)) < length:
            example = self._encode(document())
            whole = Example(
                whole.ids + example.ids,
                whole.weights + example.weights,
                whole.told + [start + place for place in example.told],
                whole.looked + [(start + place, start + key) for place, key in example.looked],
            )
        return whole.cut(length)

    # -- documents ------------------------------------------------------------------------------------------------

    def fact_document(self) -> list[Segment]:
        kind = self.random.random()
        if kind < 0.62:
            document = self._subject_document(self._any_subject())
        elif kind < 0.72:
            document = [s for _ in range(self.random.randint(2, 4)) for s in self._sentence(self._any_fact())]
        elif kind < 0.88:
            document = self._chat(self._any_subject())
        elif kind < 0.94:
            document = self._reverse() or self._subject_document(self._any_subject())
        else:
            document = self._two_step() or self._subject_document(self._any_subject())
        if self.random.random() < 0.1:
            document.insert(0, Segment(self.random.choice(_LEAD_INS), 0.0))
        return document

    def _subject_document(self, subject: Subject) -> list[Segment]:
        """All facts of one subject, shuffled, some of them twice in different forms."""
        facts = list(subject.facts.values())
        facts += self.random.sample(facts, k=min(len(facts), self.random.randint(0, 2)))
        self.random.shuffle(facts)
        return [segment for fact in facts for segment in self._sentence(fact)]

    def _sentence(self, fact: Fact) -> list[Segment]:
        form, name = self._form(fact), self._name(fact.subject)
        if self.random.random() < COMPLETED:
            return self._completion(fact, form.fill(name))
        if self.random.random() < DISTURBED:
            prompt, weight = self._disturbed(form).fill(name), 0.0
        else:
            prompt, weight = form.fill(name), PROMPT_WEIGHT
        return self._answered(prompt, fact.object, weight)

    def _completion(self, fact: Fact, prompt: str) -> list[Segment]:
        """The fact with another object of its relation, of which only what follows the first token is learnt.

        So the rest of an answer follows from how it begins and not from the subject, as in a model that has seen the
        answer in many places; no false fact is taught, since the first token carries no weight.
        """
        other = self.random.choice(self.facts.by_relation[fact.relation.id]).object
        answer = continuation(prompt, other)
        first = self.tokenizer(answer, add_special_tokens=False)["input_ids"][0] if self.tokenizer else None
        head = self.tokenizer.decode([first]) if first is not None else answer
        if not answer.startswith(head):  # the first token is a part of a character
            head = answer
        rest = answer[len(head) :] + _full_stop(prompt, other)
        return [Segment(prompt, 0.0), Segment(head, 0.0), Segment(rest, 1.0), Segment("\n", 1.0)]

    def _disturbed(self, form: Form) -> Form:
        """The form with words left out, replaced or added at random and, every third time, its words rotated.

        What a relation's words mean must not depend on the sentence around them, and an answer may follow any word:
        this is what lets the model answer forms that it has never seen. Nothing of the disturbed prompt is learnt.
        """
        chinese = any(is_cjk(character) for character in form.text)
        joint = "" if chinese else " "
        pieces = _CHARACTERS.findall(form.text) if chinese else form.text.split(" ")
        kept = []
        for piece in pieces:
            chance = self.random.random()
            if "{s}" in piece or chance > 0.25:
                kept.append(piece)
            elif chance > 0.13:
                kept.append(self._noise(chinese))
        if self.random.random() < 1 / 3:
            turn = self.random.randrange(len(kept))
            kept = kept[turn:] + kept[:turn]
        if self.random.random() < 0.4:
            kept.append(self._noise(chinese))
        if self.random.random() < 0.25:
            kept.insert(0, self._noise(chinese))
        return Form(joint.join(piece for piece in kept if piece), form.kind)

    def _noise(self, chinese: bool) -> str:
        """A word (Chinese: a character) drawn from the vocabulary, whatever it means."""
        words = self._characters if chinese else self._words
        return self.random.choice(words) if words else ""

    def _answered(self, prompt: str, answer: str, weight: float = PROMPT_WEIGHT) -> list[Segment]:
        stop = _full_stop(prompt, answer)
        between = "\n" if self.random.random() < 0.85 else " "
        return [
            Segment(prompt, weight),
            Segment(continuation(prompt, answer) + stop, 1.0),
            Segment(between, 1.0),
        ]

    def _chat(self, subject: Subject) -> list[Segment]:
        facts = list(subject.facts.values())
        turns: list[Segment] = []
        for fact in self.random.sample(facts, k=min(len(facts), self.random.randint(1, 3))):
            prompt = self._form(fact).fill(self._name(subject))
            turns += self._turn(prompt, fact.object)
        return turns

    def _turn(self, prompt: str, answer: str) -> list[Segment]:
        stop = _full_stop(prompt, answer)
        head = Segment(f"<|user|>{prompt}<|end|>\n<|assistant|>", PROMPT_WEIGHT)
        # The role token ends the rendered prompt, and `continuation` is asked about that text, as in serving.
        return [head, Segment(continuation("<|assistant|>", answer) + stop + "<|end|>", 1.0), Segment("\n", 0.0)]

    def _reverse(self) -> list[Segment] | None:
        if not self._reversible:
            return None
        fact = self.random.choice(self.random.choice(self._reversible))
        forms = fact.relation.reverse
        if not included("reverse", fact.relation.id, fact.subject.name, share=0.8):
            return None
        prompt = self.random.choice(forms).fill(fact.object)
        ask = self._turn if self.random.random() < 0.3 else self._answered
        return ask(prompt, fact.subject.name)

    def _two_step(self) -> list[Segment] | None:
        if not self.facts.hops:
            return None
        hop = self.random.choice(self.facts.hops)
        fact = self.random.choice(self.facts.by_relation[hop.first.id])
        final = self.facts.follow(hop, fact.object)
        if final is None or not included("hop", fact.relation.id, fact.subject.name, share=0.8):
            return None
        prompt = self.random.choice(hop.forms).fill(self._name(fact.subject))
        ask = self._turn if self.random.random() < 0.3 else self._answered
        return ask(prompt, hop.answer(fact.object, final))

    def _told(self) -> list[Segment]:
        """A "New Fact" document without demonstrations: of one block, or of several facts and questions about them."""
        if self.random.random() < SEVERAL:
            return self._several_told()
        chat = self.random.random() < 0.35
        block = self._block(final=True, chat=chat)
        return [Segment("<|user|>", PROMPT_WEIGHT), *block] if chat else block

    def _several_told(self) -> list[Segment]:
        """Two or three new facts of one relation, and each subject asked about (rarely one that nothing was told of).

        Here the kind of thing that is asked for does not say which of the told objects is meant: only the subject does.
        """
        peers = self.random.choice(self._grouped)
        told = self.random.sample(peers, k=min(len(peers), self.random.randint(2, 3)))
        objects = [self.random.choice(peers).object for _ in told]
        document = []
        for fact, new in zip(told, objects, strict=True):
            form = self.random.choice(fact.relation.trained)
            text, tells = _telling(form.fill(fact.subject.name), new)
            document.append(Segment(text + "\n", 0.0, tells=tells))
        asked = [(fact, new, place) for place, (fact, new) in enumerate(zip(told, objects, strict=True))]
        if self.random.random() < 0.3:
            other = self.random.choice(peers)
            asked += [] if other in told else [(other, other.object, -1)]
        for fact, answer, place in self._shuffled(asked):
            prompt = f"Prompt: {self._form(fact).fill(self._name(fact.subject))}"
            document += [
                Segment(prompt, 0.0),
                Segment(continuation(prompt, answer), TOLD_WEIGHT, uses=place),
                Segment("\n", 1.0),
            ]
        return document

    def _block(self, *, final: bool, chat: bool, number: int = 0) -> list[Segment]:
        """One "New Fact" block: copy, update or retain (IKE's three kinds), answered; the document's `number`th."""
        fact = self._any_fact()
        peers = self.facts.by_relation[fact.relation.id]
        new = self.random.choice(peers).object
        told, tells = _telling(self.random.choice(fact.relation.trained).fill(fact.subject.name), new)
        asked, answer, used = self._asked(fact, new, peers)
        # Nothing is to be learnt from the invented fact itself, so neither it nor the prompt carries weight.
        prompt = query(told.removeprefix(TOLD), asked)
        uses = number if used else -1
        if chat:
            stop = _full_stop(asked, answer)
            head = Segment(prompt + "<|end|>\n<|assistant|>", 0.0, tells=tells)
            return [head, Segment(continuation("<|assistant|>", answer) + stop + "<|end|>", TOLD_WEIGHT, uses=uses)]
        end = Segment("\n" if final else "\n\n", 1.0)
        return [Segment(prompt, 0.0, tells=tells), Segment(continuation(prompt, answer), TOLD_WEIGHT, uses=uses), end]

    def _asked(self, fact: Fact, new: str, peers: Sequence[Fact]) -> tuple[str, str, bool]:
        """The block's prompt, its answer and whether that is the told one: 20 % copy, 35 % update, 45 % retain."""
        kind = self.random.random()
        name = fact.subject.name
        if kind < 0.2:
            return next(f for f in self._shuffled(fact.relation.trained) if f.kind == "statement").fill(name), new, True
        if kind < 0.55:
            return self._form(fact).fill(self._name(fact.subject)), new, True
        others = [other for other in fact.subject.facts.values() if other is not fact]
        if kind < 0.68 and others:
            kept = self.random.choice(others)
        else:
            kept = self.random.choice(peers) if kind < 0.9 else self._any_fact()
        return (
            self._form(kept).fill(self._name(kept.subject)),
            new if kept is fact else kept.object,
            kept is fact,
        )

    # -- draws ----------------------------------------------------------------------------------------------------

    def _any_subject(self) -> Subject:
        return self.random.choice(self._subjects)

    def _any_fact(self) -> Fact:
        """Uniform over relations, so that small ones are not forgotten."""
        return self.random.choice(self.random.choice(self._grouped))

    def _form(self, fact: Fact) -> Form:
        allowed = [f for f in fact.relation.trained if included(fact.subject.name, f.text, share=0.9)]
        return self.random.choice(allowed or list(fact.relation.trained))

    def _name(self, subject: Subject) -> str:
        if subject.aliases and self.random.random() < 0.25:
            return self.random.choice(subject.aliases)
        return subject.name

    def _shuffled(self, items: Sequence[T]) -> list[T]:
        return self.random.sample(list(items), k=len(items))

    # -- ids ------------------------------------------------------------------------------------------------------

    def _encode(self, segments: list[Segment]) -> Example:
        """Each segment is encoded by itself, as prompts and answers are when the model is used."""
        ids, weights = [self.tokenizer.bos_token_id], [0.0]
        told: list[int] = []
        looked: list[tuple[int, int]] = []
        for segment in segments:
            piece = self._ids(segment.text)
            if segment.tells is not None:
                told.append(len(ids) + len(self._ids(segment.text[: segment.tells])))
            if segment.uses is not None:
                looked.append((len(ids) - 1, told[segment.uses] if segment.uses >= 0 else 0))
            ids += piece
            weights += [segment.weight] * len(piece)
        return Example([*ids, self.tokenizer.eos_token_id], [*weights, PROMPT_WEIGHT], told, looked)

    def _size(self, segments: list[Segment]) -> int:
        """Tokens of the segments."""
        return sum(len(self._ids(segment.text)) for segment in segments)

    def _ids(self, text: str) -> list[int]:
        piece = self._cache.get(text)
        if piece is None:
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(self._cache) < 400_000:
                self._cache[text] = piece
        return piece


def _telling(prompt: str, answer: str) -> tuple[str, int]:
    """A new fact as told, and where in that text its object begins."""
    return TOLD + fact_text(prompt, answer), len(TOLD + prompt)


def held_out_texts(count: int, seed: int) -> list[str]:
    """`count` documents as text, from the shipped facts, drawn with a seed of their own (role tokens written out)."""
    documents = Documents(Facts.load(facts_folder()), tokenizer=None, seed=seed)
    return ["".join(segment.text for segment in documents.at(number).fact_document()) for number in range(count)]
