"""Perplexity of ordinary text, by the base and with patches: the side effects of edits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.errors import EditError
from vllm_edit.evaluation.report import Drift
from vllm_edit.evaluation.runners.runner import Reading, Request, Runner

_LARGEST = 700.0  # exponent limit: perplexity stays finite, however broken a model is


def perplexity(readings: Sequence[Reading]) -> float:
    """exp of the mean negative log-likelihood over all predicted tokens; long texts weigh more."""
    tokens = sum(reading.tokens for reading in readings)
    mean = sum(reading.nll for reading in readings) / max(tokens, 1)
    return math.exp(mean if mean < _LARGEST else _LARGEST)


def drift_of(texts: Sequence[str], patches: Sequence[CompiledPatch], runner: Runner, site: Site | None = None) -> Drift:
    """Perplexity of the texts with each patch, compared with the base's on the same texts.

    With a patch with scope subject, each text uses the subjects that it mentions, as a prompt does. `site` is as in
    `evaluate`.

    Raises:
        EditError: the texts have no token to predict.
    """
    base, edited, reasons = [], [], []
    read = runner.read([Request(text) for text in texts])
    if not any(reading.tokens for reading in read):
        raise EditError(f"perplexity needs text of at least two tokens, got {len(texts)} texts without any")
    for patch in patches:
        narrowing, requests, rows = Narrowing(patch, site), [], []
        for row, text in enumerate(texts):
            try:
                requests.append(Request(text, patch=narrowing.of(text)))
            except EditError as error:  # a server answers 409 or 400
                reasons.append(str(error))
            else:
                rows.append(row)
        edited += runner.read(requests)
        base += [read[row] for row in rows]
    before, after = perplexity(base), perplexity(edited)
    return Drift(
        texts=len(texts) * len(patches),
        tokens=sum(reading.tokens for reading in base),
        base=before,
        edited=after,
        value=after / before - 1,
        unserved=len(reasons),
        why=reasons[0] if reasons else "",
    )
