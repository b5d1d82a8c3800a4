"""Fixtures that several packages' tests share. The models are read-only: a test that changes one makes its own."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with BOS."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny Llama for read-only use."""
    return tiny_model("llama", tokenizer)
