"""atlas's tokenizer: byte-level BPE learned from the fact tables, with a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vllm_edit.facts.facts import Facts
from vllm_edit.ike.template import query
from vllm_edit.text.prompts import continuation

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
_CHARACTERS = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]|[^\u2e80-\u9fff\uff00-\uffef]+")  # CJK alone, other runs whole
_FREQUENT = 40  # weight of a template's words relative to a name's: templates recur in every document

# The generation prompt ends in a role token, so an answer follows it with the same leading space, and therefore the
# same token ids, as it follows plain text: one form of each object to learn and to edit.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set content = message['content'] %}"
    "{% else %}{% set content = message['content'] | map(attribute='text') | join('') %}{% endif %}"
    "<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{{ ' ' + content | trim }}{% else %}{{ content }}"
    "{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(facts: Facts, vocabulary: int = 8192) -> PreTrainedTokenizerFast:
    """Learn the merges from names, objects and forms, each a separate piece.

    Chinese has no spaces, so merges would run from a name into the text beside it, or over a whole phrase such as
    "'s capital is", and a form with other words around "capital" would share no token with it. So Chinese names are
    learnt as wholes, Chinese forms character by character.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(facts), trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _pieces(facts: Facts) -> Iterator[str]:
    """Names and objects with and without a leading space; forms cut at their slot."""
    for subject in facts.subjects:
        for name in (subject.name, *subject.aliases):
            yield from (name, continuation("x", name)) * 3
        for fact in subject.facts.values():
            # A word of an object should be one token, so that an answer's first token identifies it.
            yield from (continuation("x", fact.object),) * _FREQUENT
            yield fact.object
    forms = [f for r in facts.relations for f in (*r.trained, *r.held_out, *r.reverse)]
    forms += [f for hop in facts.hops for f in (*hop.forms, *hop.held_out)]
    for form in forms:
        for piece in form.text.replace("{o}", "{s}").split("{s}"):
            yield from _CHARACTERS.findall(piece) * _FREQUENT
    yield from [query("", "")] * _FREQUENT
