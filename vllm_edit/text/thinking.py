"""Thinking: text that some models write before an answer, between special marks, and the chat templates that start it.

Edits are compiled and judged without thinking. A template with a switch is rendered with the switch off; if a template
begins the thinking itself and has no switch, the thinking is closed at once, so that the answer follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Thinking = Literal["off", "after"]
"""How to render a thinking template: with its switch off, or with an empty thinking."""

OFF: Mapping[str, Any] = {"enable_thinking": False, "thinking": False}
"""The switch's names in templates; a template without a switch ignores them."""

_MARKS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "reason", "seed:think")},
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|think_start|>": "<|think_end|>",
    "◁think▷": "◁/think▷",
}
_BEGUN = re.compile(f"\\s*({'|'.join(map(re.escape, _MARKS))})")
_BEGINS_AT_END = re.compile(f"({'|'.join(map(re.escape, _MARKS))})\\s*$")
_END = re.compile("|".join(map(re.escape, _MARKS.values())))


def is_mark(token: str) -> bool:
    """True for a token that begins or ends thinking."""
    return token in _MARKS or token in _MARKS.values()


def after_thinking(text: str) -> str | None:
    """A model's text after its thinking; all text without thinking, None if the thinking does not end."""
    *_, rest = _END.split(text)
    return None if _BEGUN.match(rest) else rest


def ended(prompt: str) -> str:
    """The rendered prompt, with the thinking closed if its template began one."""
    begun = _BEGINS_AT_END.search(prompt)
    return prompt if begun is None else f"{prompt[: begun.end(1)]}\n\n{_MARKS[begun[1]]}\n\n"


def thinking_of(tokenizer: PreTrainedTokenizerFast) -> Thinking | None:
    """How to render the tokenizer's chat template; None without a template or without thinking."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def asked(**switch: Any) -> str:
        turns = [{"role": "user", "content": "Where is it?"}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch))

    off = asked(**OFF)
    if ended(off) != off:
        return "after"
    return "off" if off != asked() else None
