"""Text that a patch makes less likely: a random model has no perplexity to lose on text in general."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.evaluation.runners.runner import Request, Runner


def less_likely(texts: Sequence[str], patch: CompiledPatch, runner: Runner) -> list[str]:
    """Those of the texts that the runner's model finds less likely with the patch; there must be some."""
    before = runner.read([Request(text) for text in texts])
    after = runner.read([Request(text, patch=patch) for text in texts])
    found = [text for text, item, other in zip(texts, before, after, strict=True) if other.nll > item.nll]
    assert found
    return found
