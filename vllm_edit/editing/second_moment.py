"""Second moment C = E[k kᵀ] of a module's input over ordinary text, whose outputs a closed-form edit must preserve.

ROME (arXiv 2202.05262, eq. 2) and its successors weight directions of the key space by C⁻¹. Departures from their code:
tokens are counted instead of documents, and too few tokens are an error (C of fewer than d_in vectors is singular);
C is factored with a small ridge in float64 instead of inverted in float32; the cache key contains everything that
affects C, and damaged cache files are detected (docs/methods.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edit.deltas.linear import linear_shape
from vllm_edit.digest import digest_json, digest_tensors
from vllm_edit.errors import EditError
from vllm_edit.files import replacing
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen, inputs_of
from vllm_edit.models.lengths import positions_of
from vllm_edit.models.padding import padded, padding_id
from vllm_edit.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

RIDGE = 1e-3
_MOST_MEDIANS = 10
"""Largest mean of C's diagonal, in medians, that counts as its scale. SmolLM2: 1.2 to 3.2 in ordinary layers."""
_FORMAT = 2
_MINIMUM_RATIO = 10  # required number of vectors, as a multiple of d_in
_MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C [d_in, d_in] float32 over `count` vectors. Solving adds `ridge` times C's scale to the diagonal.

    All three values identify it: a site contains `digest`, and the store contains `tensors()`.
    """

    matrix: torch.Tensor
    count: int
    ridge: float = RIDGE

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "matrix": self.matrix,
            "count": torch.tensor([self.count]),
            "ridge": torch.tensor([self.ridge], dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> SecondMoment:
        """The second moment from its `tensors()`."""
        return cls(tensors["matrix"], int(tensors["count"]), float(tensors["ridge"]))

    @cached_property
    def digest(self) -> str:
        return digest_tensors(self.tensors())

    def with_ridge(self, ridge: float) -> SecondMoment:
        """The same C with another ridge, for a sweep."""
        return replace(self, ridge=ridge)

    def scale(self, mean: float) -> float:
        """The scale of C: `mean`, or the median of C's diagonal if the mean is over ten times the median.

        In some layers, a few tokens (often the first of each text) have keys a thousand times as long as other keys.
        Such keys determine the mean, but hardly affect the median.

        Args:
            mean: the mean of C's diagonal, or of its eigenvalues. Both are the same, except for rounding.
        """
        median = float(self.matrix.diagonal().double().median())
        return median if 0 < _MOST_MEDIANS * median < mean else mean

    @cached_property
    def cholesky(self) -> torch.Tensor:
        """Lower factor L [d_in, d_in], float64: L Lᵀ = C + ridge · s · I, s = scale(mean(diag C)).

        Computed once, on the GPU if it has enough memory: 14,336 inputs take 10¹² operations.

        Raises:
            EditError: the matrix is not positive definite.
        """
        C = self.matrix.to(_roomy(8 * 3 * self.matrix.numel()), torch.float64, copy=True)
        C.diagonal().add_(self.ridge * self.scale(float(C.diagonal().mean())))
        factor: torch.Tensor
        factor, failed = torch.linalg.cholesky_ex(C)
        if failed:
            raise EditError(
                f"the second moment of {self.count} vectors with ridge {self.ridge} is not positive definite: "
                "measure it on more text, or raise the ridge"
            )
        return factor

    def whiten(self, keys: torch.Tensor) -> torch.Tensor:
        """C⁻¹ k for each row of keys [n, d_in]. Returns [n, d_in] float64 on the CPU."""
        if keys.ndim != 2 or keys.shape[1] != len(self.matrix):
            raise EditError(f"expected keys [n, {len(self.matrix)}]; got {tuple(keys.shape)}")
        columns = keys.to(self.cholesky.device, torch.float64).mT
        return torch.cholesky_solve(columns, self.cholesky).mT.cpu()


def second_moments(
    base: Base,
    modules: Sequence[str],
    texts: Iterable[str],
    *,
    cache: Path | None = None,
    batch_tokens: int = 4096,
    max_tokens: int | None = None,
    minimum_ratio: float = _MINIMUM_RATIO,
    ridge: float = RIDGE,
    progress: Progress | None = None,
) -> list[SecondMoment]:
    """C of each module's input over all tokens of `texts` (without padding), each truncated to the model's length.

    One pass over the text serves as many modules as fit into 2 GiB of sums; later blocks are not run.

    Args:
        cache: folder from which the moment of the same base, module, texts, `max_tokens` and dtype is read.
        batch_tokens: maximum number of tokens, padding included, in one forward pass. It does not change the result.
        max_tokens: texts are used in order until this number of tokens is reached.
        minimum_ratio: required number of vectors, as a multiple of d_in.
        ridge: see `SecondMoment`.

    Raises:
        EditError: the texts have fewer than `minimum_ratio` · d_in tokens.
    """
    chosen = list(texts)
    length = _longest(base)
    asked = {
        "format": _FORMAT,
        "base": base.fingerprint.digest,
        "texts": digest_json(chosen),
        "length": length,
        "max_tokens": max_tokens,
        "dtype": str(base.model.dtype),
    }
    paths = {
        module: cache / f"second-moment-{digest_json(asked | {'module': module})}.safetensors"
        for module in modules
        if cache
    }
    found = {module: moment for module, path in paths.items() if (moment := _read(path))}
    missing = {module: linear_shape(find_module(base.model, module))[1] for module in modules if module not in found}
    rows = _token_rows(base.tokenizer, chosen, length, max_tokens) if missing else []
    count = sum(map(len, rows))
    for module in modules:
        d_in = missing.get(module) or len(found[module].matrix)
        there = count if module in missing else found[module].count
        _check_count(there, len(chosen), module, d_in, minimum_ratio)
    for group in _fitting(missing):
        for module, matrix in _accumulate(base, group, rows, batch_tokens, progress).items():
            found[module] = SecondMoment(matrix, count)
            if cache:
                _write(paths[module], found[module])
    return [found[module].with_ridge(ridge) for module in modules]


def check_texts(base: Base, module: str, texts: Sequence[str]) -> None:
    """Check that the texts suffice for the module's second moment, without a pass of the model.

    Raises:
        EditError: the texts have fewer tokens than `second_moments` requires by default.
    """
    d_in = linear_shape(find_module(base.model, module))[1]
    rows = _token_rows(base.tokenizer, texts, _longest(base), int(_MINIMUM_RATIO * d_in))
    _check_count(sum(map(len, rows)), len(texts), module, d_in, _MINIMUM_RATIO)


def _check_count(there: int, texts: int, module: str, d_in: int, minimum_ratio: float) -> None:
    if there < (needed := int(minimum_ratio * d_in)):
        raise EditError(
            f"the second moment of {module} needs at least {needed} vectors ({minimum_ratio:g} times its {d_in} "
            f"inputs); the {texts} texts have {there} tokens: give more text"
        )


def _fitting(widths: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The modules (name → d_in) in groups whose float64 sums take at most `_MOST_BYTES`, or groups of one module."""
    group: dict[str, int] = {}
    for module, d_in in widths.items():
        if group and 8 * sum(width**2 for width in (*group.values(), d_in)) > _MOST_BYTES:
            yield group
            group = {}
        group[module] = d_in
    if group:
        yield group


def _accumulate(
    base: Base, widths: Mapping[str, int], rows: Sequence[list[int]], batch_tokens: int, progress: Progress | None
) -> dict[str, torch.Tensor]:
    """Module → Σ w k kᵀ / Σ w, [d_in, d_in] float32 on the CPU; products in float32, sum over batches in float64.

    widths: module → d_in. w is 1 in most models. If the block normalises its MLP's output, w is 1 / mean square of the
    module's output, because a change then counts relative to the output's size.
    """
    renormed = {module for module, is_so in zip(base.layout.down, base.layout.renormed, strict=True) if is_so}
    decoder = base.model.base_model  # without the head, because no logits are needed
    targets = {find_module(base.model, module): module for module in widths}
    inner = {name: targets[part] for name, part in decoder.named_modules() if part in targets}
    totals = {
        module: torch.zeros(d_in, d_in, dtype=torch.float64, device=base.device) for module, d_in in widths.items()
    }
    step = f"second moment of {next(iter(widths))}" if len(widths) == 1 else f"second moments of {len(widths)} modules"
    weighed = dict.fromkeys(widths, 0.0)
    count, done = sum(map(len, rows)), 0
    pad = padding_id(base.model, base.tokenizer.pad_token_id)
    with torch.no_grad(), frozen(base.model):
        for batch in _batches(rows, batch_tokens):
            ids, mask = (tensor.to(base.device) for tensor in padded(batch, pad, left=False))
            captured = inputs_of(decoder, list(inner), input_ids=ids, attention_mask=mask, use_cache=False)
            for name, module in inner.items():
                inputs = captured[name][mask.bool()]  # [real tokens, d_in]
                keys = inputs.float()
                weights = torch.ones_like(keys[:, 0])
                if module in renormed:
                    sizes = find_module(base.model, module)(inputs).float().square().mean(1)
                    weights = 1 / sizes.clamp_min(torch.finfo(torch.float32).tiny)
                weighed[module] += float(weights.sum())
                totals[module] += ((weights[:, None] * keys).mT @ keys).double()
            done += sum(map(len, batch))
            if progress:
                progress(step, done, count)
    return {module: (total / weighed[module]).float().cpu() for module, total in totals.items()}


def _roomy(size: int) -> torch.device:
    """The GPU if it has more than `size` bytes of free memory, else the CPU."""
    roomy = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > size
    return torch.device("cuda" if roomy else "cpu")


def _token_rows(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int, max_tokens: int | None
) -> list[list[int]]:
    """Ids of the texts with the tokenizer's special tokens, in order, until `max_tokens` is reached."""
    rows: list[list[int]] = []
    total = 0
    for text in texts:
        if max_tokens is not None and total >= max_tokens:
            break
        ids: list[int] = tokenizer(text)["input_ids"][:length]
        if ids:
            rows.append(ids)
            total += len(ids)
    return rows


def _batches(rows: Sequence[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """The rows, longest first, in batches of at most `batch_tokens` tokens with padding (but at least one row)."""
    batch: list[list[int]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _longest(base: Base) -> int:
    """Maximum number of tokens of one text: the model's context length, but at most 2,048."""
    return min(positions_of(base.model) or 2048, 2048)


def _read(path: Path) -> SecondMoment | None:
    """The cached moment; None if the file is missing or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            expected = (file.metadata() or {}).get("digest")
    except (SafetensorError, OSError) as error:
        logger.warning("%s cannot be read and is measured again: %s", path, error)
        return None
    if digest_tensors(tensors) != expected:
        logger.warning("%s does not match its digest and is measured again", path)
        return None
    return SecondMoment.from_tensors(tensors)


def _write(path: Path, moment: SecondMoment) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        save_file(moment.tensors(), new, metadata={"digest": moment.digest})
