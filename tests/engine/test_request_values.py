"""What is read from vLLM's answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_edit.engine.request_values import ends_of


def test_an_answer_ends_at_its_last_token_unless_it_was_cut() -> None:
    answer: Any = SimpleNamespace(token_ids=[5, 7, 2], finish_reason="stop")
    assert list(ends_of(answer)) == [2]
    answer.finish_reason = "length"
    assert list(ends_of(answer)) == []
