"""Limits that only vLLM's workers check: a request beyond one ends the engine for everyone.

Upstream: Model Runner V2, which vLLM chooses on CUDA, raises a plain ValueError in the worker
(`v1/worker/gpu/sample/logit_bias.py` and `bad_words.py`, 0.32.0), and vLLM's own server passes such a request on.
Delete when `SamplingParams.verify` refuses it.
"""

from __future__ import annotations

import os

MOST_ALLOWED_TOKEN_IDS = 1024
MOST_LOGIT_BIASES = 1024
MOST_STOP_TOKEN_IDS = 128
"""Of the request and of the model together."""
BAD_WORD_TOKENS = "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS"
MOST_BAD_WORD_TOKENS = 1024
"""The default of `BAD_WORD_TOKENS`."""


def most_bad_word_tokens() -> int:
    """Maximum number of tokens that all bad words of a request have, as vLLM reads it from the environment."""
    return int(os.environ.get(BAD_WORD_TOKENS, str(MOST_BAD_WORD_TOKENS)))
