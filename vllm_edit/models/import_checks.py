"""Checks of a base model's tokenizer and cache, and of an imported folder: text round trip, open end of prompts, BOS,
and logits equal to the source's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from vllm_edit.errors import EditError
from vllm_edit.models.bos import bos_in_chat, puts_bos
from vllm_edit.text.prompts import around_turn, prompt_ids
from vllm_edit.text.quoting import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm_edit.models.causal_lm import CausalLM

ROUND_TRIP = (
    "The capital of France is Paris, isn't it?",
    "Zoë naïvely garçon œuvre Škoda — “señor”, 12.5 %",
    "Столица Франции — Париж.",
    "Η πρωτεύουσα της Γαλλίας είναι το Παρίσι.",
    "法国的首都是巴黎。",
    "フランスの首都はパリです。",
    "프랑스의 수도는 파리입니다.",
    "عاصمة فرنسا هي باريس.",
    "फ्रांस की राजधानी पेरिस है।",
    "เมืองหลวงของฝรั่งเศสคือปารีส",
    "🙂 👩‍🚀 🇫🇷 ✅",
    "def area(r):\n    if r < 0:\n\t\treturn None\n    return 3.14159 * r ** 2\n",
)
"""Texts for the round-trip check: scripts, symbols, and code with indentation. All are in Unicode's form C, because
some tokenizers normalise text to it."""

PROMPTS = ("The capital of France is", "Once upon a time there was", "def add(a, b):\n    return")
"""Short prompts for the comparison of logits and for the displayed continuations."""

TOLERANCE = {torch.float32: 0.0, torch.bfloat16: 0.03, torch.float16: 0.005}
"""Maximum difference from the source's float32 logits after rounding the weights to a dtype, as a share of the largest
logit. SmolLM2-135M: 0.004 in bfloat16, 0.0009 in float16."""


def check_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the tokenizer reproduces text.

    Raises:
        EditError: decode(encode(x)) is not x; the message contains the first such text and its result.
    """
    for text in ROUND_TRIP:
        ids = tokenizer(text)["input_ids"]
        back = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if back != text:
            raise EditError(
                f"the tokenizer does not give text back: expected {quoted(text)}, got {quoted(back)}; the model's "
                "answers could not be compared with what was asked for"
            )


def check_open_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the tokenizer adds no token after plain text; otherwise an answer would follow the end of text.

    Raises:
        EditError: it adds tokens; the message contains them.
    """
    bare, whole = (tokenizer("Paris", add_special_tokens=special)["input_ids"] for special in (False, True))
    if bare and whole[-len(bare) :] != bare:
        after = "".join(tokenizer.convert_ids_to_tokens(whole[whole.index(bare[-1]) + 1 :]))
        raise EditError(
            f"the tokenizer puts {after!r} after plain text, so no answer can follow a prompt; set add_eos_token to "
            "false, or correct the template of tokenizer.json"
        )


def check_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the chat template, if there is one, renders a user's turn with its text.

    Raises:
        EditError: the template cannot render a turn, or leaves out its text.
    """
    if getattr(tokenizer, "chat_template", None):
        around_turn(tokenizer)


def check_rows(tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Check that the ids of texts and of a chat turn are within the `rows` rows of the model's embedding.

    Raises:
        EditError: an id has no row; the message contains the first such id.
    """
    read = [prompt_ids(tokenizer, text) for text in ROUND_TRIP]
    if getattr(tokenizer, "chat_template", None):
        read.append(prompt_ids(tokenizer, ROUND_TRIP[0], chat=True))
    if beyond := [number for ids in read for number in ids if number >= rows]:
        raise EditError(
            f"the tokenizer gives id {beyond[0]} for {tokenizer.convert_ids_to_tokens(beyond[0])!r}, the model has "
            f"rows 0 to {rows - 1}: they are not of one model"
        )


def check_cache(model: CausalLM) -> None:
    """Check that every layer keeps keys and values, and no other state of earlier tokens.

    Texts that share a beginning are read in one pass, from the stored keys and values of the beginning.

    Raises:
        EditError: a layer keeps another state (linear attention, in hybrid models); the message names the layers.
    """
    layers = DynamicCache(config=model.config).layers
    others = [str(number) for number, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if others:
        raise EditError(
            f"{len(others)} of its {len(layers)} layers keep a state of linear attention ({', '.join(others[:3])} …); "
            "expected a model that has attention with keys and values in every layer"
        )


def check_bos(tokenizer: PreTrainedTokenizerFast, wanted: bool | None) -> None:
    """Check that the tokenizer adds BOS before plain text as the source does, and at most once in a chat.

    wanted: whether BOS is expected before plain text; None if the source does not state it.

    Raises:
        EditError: BOS is missing, unexpected or repeated.
    """
    before, in_chat = puts_bos(tokenizer), bos_in_chat(tokenizer)
    if wanted is not None and before != wanted:
        expected, got = ("BOS before plain text", "no BOS") if wanted else ("no BOS before plain text", "BOS")
        raise EditError(f"the saved tokenizer departs from its source: expected {expected}, got {got}")
    if in_chat > 1:
        raise EditError(f"the chat template begins with {in_chat} BOS; expected at most 1: correct the template")


def check_same_ids(saved: PreTrainedTokenizerFast, read: PreTrainedTokenizerFast) -> None:
    """Check that the saved tokenizer gives the same ids as the source's.

    Raises:
        EditError: the ids differ; the message contains the first such text.
    """
    for text in ROUND_TRIP:
        expected, got = read(text)["input_ids"], saved(text)["input_ids"]
        if expected != got:
            raise EditError(f"the saved tokenizer gives other ids for {quoted(text)}: expected {expected}, got {got}")


@torch.no_grad()
def logits(model: CausalLM, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of each prompt's ids, [tokens, vocabulary] each, with one forward pass per prompt."""
    return [model(input_ids=torch.tensor([list(prompt)])).logits[0].float() for prompt in prompts]


def check_logits(saved: Sequence[torch.Tensor], read: Sequence[torch.Tensor], dtype: torch.dtype) -> float:
    """The largest difference between logits of the saved folder and of its source, [tokens, vocabulary] each.

    Raises:
        EditError: it is not a number, or larger than rounding to `dtype` explains (`TOLERANCE`).
    """
    difference = max(float((after - before).abs().max()) for after, before in zip(saved, read, strict=True))
    most = TOLERANCE[dtype] * max(float(before.abs().max()) for before in read)
    if not difference <= most:
        raise EditError(
            f"the saved model's logits depart from the source's by {difference:.3g}; expected at most {most:.3g} in "
            f"{str(dtype).removeprefix('torch.')}: choose float32, or another source"
        )
    return difference
