"""Builds vLLM's values for a request (sampling parameters, prompt, adapter), and reads those of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # other packages take vLLM's types from here
    from vllm.inputs import TokensPrompt as TokensPrompt
    from vllm.logprobs import Logprob as Logprob
    from vllm.lora.request import LoRARequest as LoRARequest
    from vllm.outputs import CompletionOutput as CompletionOutput
    from vllm.outputs import RequestOutput as RequestOutput
    from vllm.sampling_params import SamplingParams as SamplingParams


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    """Sampling parameters that take the most likely token at each step.

    Args:
        max_tokens: maximum number of tokens to generate.
        options: more fields of `vllm.SamplingParams`.
    """
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def token_prompt(ids: list[int]) -> TokensPrompt:
    """A prompt of token ids."""
    from vllm.inputs import TokensPrompt

    return TokensPrompt(prompt_token_ids=ids)


def adapter(name: str, number: int, folder: str | Path) -> LoRARequest:
    """The request for an adapter.

    Args:
        name: the adapter's name.
        number: the engine's id of the adapter, from 1.
        folder: the adapter's PEFT directory.
    """
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder))


def ends_of(answer: CompletionOutput) -> Sequence[int]:
    """The id at which vLLM stopped, which is the answer's last token; none if the answer was cut at its limit."""
    return answer.token_ids[-1:] if answer.finish_reason == "stop" else ()


def read_tokens(output: RequestOutput) -> list[Logprob]:
    """The log-probability and rank of each token of the prompt except the first, which nothing predicts.

    output: of a request with `prompt_logprobs`.
    """
    ids, found = output.prompt_token_ids, output.prompt_logprobs
    if ids is None or found is None:
        raise ValueError("expected the log-probabilities of a prompt, got none: ask for prompt_logprobs=0")
    return [position[token] for token, position in zip(ids[1:], found[1:], strict=True) if position is not None]
