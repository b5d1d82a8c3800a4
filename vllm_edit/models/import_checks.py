"""Checks of a base model's tokenizer, and of an imported folder: texts come back, an answer can follow a prompt, BOS
stands where it should, the logits are the source's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_edit.errors import EditError
from vllm_edit.models.bos import bos_in_chat, puts_bos
from vllm_edit.prompting import prompt_ids
from vllm_edit.text import quoted

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
"""Texts that every tokenizer must give back: scripts, signs, and code with indentation. All are in Unicode's form C,
because some tokenizers convert text to it."""

PROMPTS = ("The capital of France is", "Once upon a time there was", "def add(a, b):\n    return")
"""Short prompts for the comparison of logits and for the continuations that are shown."""

TOLERANCE = {torch.float32: 0.0, torch.bfloat16: 0.03, torch.float16: 0.005}
"""Largest difference from the source's float32 logits that rounding the weights to a dtype may cause, as a share of the
largest logit. SmolLM2-135M: 0.004 in bfloat16, 0.0009 in float16."""


def check_round_trip(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not give text back.

    Raises:
        EditError: decode(encode(x)) is not x; the first such text is shown with what came.
    """
    for text in ROUND_TRIP:
        ids = tokenizer(text)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back != text:
            raise EditError(
                f"the tokenizer does not give text back: expected {quoted(text)}, got {quoted(back)}; the model's "
                "answers could not be compared with what was asked for"
            )


def check_open_end(tokenizer: Any) -> None:
    """Refuse a tokenizer that puts a token of its own after plain text: an answer would follow the end of text.

    Raises:
        EditError: with the tokens that it puts there.
    """
    bare, whole = (tokenizer("Paris", add_special_tokens=special)["input_ids"] for special in (False, True))
    if bare and whole[-len(bare) :] != bare:
        after = "".join(tokenizer.convert_ids_to_tokens(whole[whole.index(bare[-1]) + 1 :]))
        raise EditError(
            f"the tokenizer puts {after!r} after plain text, so no answer can follow a prompt; set add_eos_token to "
            "false, or mend the template of tokenizer.json"
        )


def check_rows(tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer whose ids the model has no row for in its embedding, of `rows` rows.

    Raises:
        EditError: with the first such id, of the texts or of a chat turn.
    """
    read = [prompt_ids(tokenizer, text) for text in ROUND_TRIP]
    if getattr(tokenizer, "chat_template", None):
        read.append(prompt_ids(tokenizer, ROUND_TRIP[0], chat=True))
    if beyond := [number for ids in read for number in ids if number >= rows]:
        raise EditError(
            f"the tokenizer gives id {beyond[0]} for {tokenizer.convert_ids_to_tokens(beyond[0])!r}, the model has "
            f"rows 0 to {rows - 1}: they are not of one model"
        )


def check_bos(tokenizer: Any, wanted: bool | None) -> None:
    """Refuse a tokenizer that puts BOS where it should not stand, or not where it should, or twice.

    wanted: whether BOS stands before plain text; None if the source does not state it.

    Raises:
        EditError: with what was expected and what came.
    """
    before, in_chat = puts_bos(tokenizer), bos_in_chat(tokenizer)
    if wanted is not None and before != wanted:
        expected, got = ("BOS before plain text", "none") if wanted else ("no BOS before plain text", "one")
        raise EditError(f"the saved tokenizer departs from its source: expected {expected}, got {got}")
    if in_chat > 1:
        raise EditError(f"the chat template begins with {in_chat} BOS; expected one at most: mend its template")


def check_same_ids(saved: Any, read: Any) -> None:
    """Refuse a saved tokenizer that reads text otherwise than the source's.

    Raises:
        EditError: with the first text of which it makes other ids.
    """
    for text in ROUND_TRIP:
        expected, got = read(text)["input_ids"], saved(text)["input_ids"]
        if expected != got:
            raise EditError(f"the saved tokenizer reads {quoted(text)} otherwise: expected {expected}, got {got}")


@torch.no_grad()
def logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of each prompt's ids, [tokens, vocabulary] each, one forward pass a prompt."""
    return [model(input_ids=torch.tensor([list(prompt)])).logits[0].float() for prompt in prompts]


def check_logits(saved: Sequence[torch.Tensor], read: Sequence[torch.Tensor], dtype: torch.dtype) -> float:
    """The largest difference between logits of the saved folder and of its source, [tokens, vocabulary] each.

    Raises:
        EditError: it is larger than rounding to `dtype` explains (`TOLERANCE`), or not a number.
    """
    difference = max(float((after - before).abs().max()) for after, before in zip(saved, read, strict=True))
    most = TOLERANCE[dtype] * max(float(before.abs().max()) for before in read)
    if not difference <= most:
        raise EditError(
            f"the saved model's logits depart from the source's by {difference:.3g}; expected at most {most:.3g} in "
            f"{str(dtype).removeprefix('torch.')}: choose float32, or another source"
        )
    return difference
