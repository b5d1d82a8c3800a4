"""C is the second moment over real tokens, for any batches; the cache answers only for its own inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import SENTENCES, tiny_model
from vllm_edit.digest import digest_tensors
from vllm_edit.editing import second_moment
from vllm_edit.editing.memit.null_space import NullSpace
from vllm_edit.editing.second_moment import SecondMoment, second_moments
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.hooks import capture_inputs, capture_outputs

DOWN = "model.layers.1.mlp.down_proj"
TEXTS = [" ".join(SENTENCES[i : i + 1 + i % 3]) for i in range(len(SENTENCES))] * 2


@pytest.fixture(scope="module")
def base(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Base:
    return Base.of(llama, tokenizer)


@pytest.fixture(scope="module")
def moment(base: Base) -> SecondMoment:
    return second_moments(base, [DOWN], TEXTS, minimum_ratio=5)[0]


def reference(base: Base, name: str, texts: list[str]) -> tuple[torch.Tensor, int]:
    """Text by text without padding, summed in float64."""
    total, count = torch.zeros(96, 96, dtype=torch.float64), 0
    with torch.no_grad(), capture_inputs(base.model, [name]) as captured:
        for text in texts:
            base.model(torch.tensor([base.tokenizer(text)["input_ids"]]))
            keys = captured[name][0].double()
            total, count = total + keys.mT @ keys, count + len(keys)
    return total / count, count


def test_the_moment_is_that_of_every_real_token(base: Base, moment: SecondMoment) -> None:
    expected, count = reference(base, DOWN, TEXTS)
    assert moment.count == count
    assert moment.matrix.dtype == torch.float32
    assert torch.allclose(moment.matrix.double(), expected, rtol=1e-4, atol=1e-6)


def test_padding_and_batch_size_do_not_matter(base: Base, moment: SecondMoment) -> None:
    alone = second_moments(base, [DOWN], TEXTS, minimum_ratio=5, batch_tokens=1)[0]
    assert alone.count == moment.count
    assert torch.allclose(alone.matrix, moment.matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "name"), [("opt", "model.decoder.layers.0.fc2"), ("gpt2", "transformer.h.1.mlp.c_proj")]
)
def test_families_that_flatten_or_transpose_agree_too(
    tokenizer: PreTrainedTokenizerFast, family: str, name: str
) -> None:
    base = Base.of(tiny_model(family, tokenizer), tokenizer)
    found = second_moments(base, [name], TEXTS, minimum_ratio=5)[0]
    assert torch.allclose(found.matrix.double(), reference(base, name, TEXTS)[0], rtol=1e-3, atol=1e-6)


def test_a_token_counts_by_the_size_of_the_output_where_the_block_normalises_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    base = Base.of(tiny_model("gemma2", tokenizer), tokenizer)
    total, weights = torch.zeros(96, 96, dtype=torch.float64), 0.0
    with torch.no_grad(), capture_inputs(base.model, [DOWN]) as inputs, capture_outputs(base.model, [DOWN]) as outputs:
        for text in TEXTS:
            base.model(torch.tensor([tokenizer(text)["input_ids"]]))
            for key, output in zip(inputs[DOWN][0].double(), outputs[DOWN][0].double(), strict=True):
                weight = float(1 / output.square().mean())
                total, weights = total + weight * key[:, None] * key[None, :], weights + weight
    found = second_moments(base, [DOWN], TEXTS, minimum_ratio=5)[0]
    assert torch.allclose(found.matrix.double(), total / weights, rtol=1e-3, atol=1e-6)


LAYERS = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]


def passes_of(base: Base, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """One dict for each forward pass: block → how often it was computed."""
    passes: list[dict[str, int]] = []
    for name, part in base.model.named_modules():
        if part is base.model.base_model or name in base.layout.layers:

            def counted(
                *args: object, own: Callable[..., object] = part.forward, name: str = name, **kw: object
            ) -> object:
                if name in base.layout.layers:
                    passes[-1][name] = passes[-1].get(name, 0) + 1
                else:
                    passes.append({})
                return own(*args, **kw)

            monkeypatch.setattr(part, "forward", counted)
    return passes


def test_several_modules_are_measured_in_one_reading_as_each_alone(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [second_moments(base, [name], TEXTS, minimum_ratio=5)[0] for name in LAYERS]
    passes = passes_of(base, monkeypatch)
    reported: list[str] = []
    together = second_moments(
        base, LAYERS[::-1], TEXTS, minimum_ratio=5, progress=lambda what, *_: reported.append(what)
    )
    assert [moment.digest for moment in together] == [moment.digest for moment in alone[::-1]]
    assert set(reported) == {"second moments of 3 modules"}
    batches = len(passes)
    monkeypatch.setattr(second_moment, "_MOST_BYTES", 2 * 8 * 96**2)  # room for two
    again = second_moments(base, LAYERS, TEXTS, minimum_ratio=5)
    assert [moment.digest for moment in again] == [moment.digest for moment in alone]
    assert len(passes) == 3 * batches


def test_no_block_above_the_modules_is_computed(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = passes_of(base, monkeypatch)
    second_moments(base, [LAYERS[0]], TEXTS, minimum_ratio=5)
    assert passes
    assert all(run == {"model.layers.0": 1} for run in passes)


def test_only_moments_that_the_cache_lacks_are_measured(base: Base, tmp_path: Path) -> None:
    reported: list[str] = []
    second_moments(base, LAYERS[:2], TEXTS, minimum_ratio=5, cache=tmp_path)
    found = second_moments(
        base, LAYERS, TEXTS, minimum_ratio=5, cache=tmp_path, progress=lambda what, *_: reported.append(what)
    )
    assert set(reported) == {f"second moment of {LAYERS[2]}"}
    assert [moment.digest for moment in found] == [
        m.digest for m in second_moments(base, LAYERS, TEXTS, minimum_ratio=5)
    ]


def test_the_model_is_left_alone(base: Base) -> None:
    with unchanged(base):
        second_moments(base, [DOWN], TEXTS, minimum_ratio=5)


def test_progress_is_reported_up_to_the_last_token(base: Base, moment: SecondMoment) -> None:
    reported: list[tuple[str, int, int]] = []
    second_moments(base, [DOWN], TEXTS, minimum_ratio=5, batch_tokens=200, progress=lambda *step: reported.append(step))
    assert len(reported) > 1
    assert reported[-1] == (f"second moment of {DOWN}", moment.count, moment.count)


def test_too_few_vectors_are_refused_with_both_numbers(base: Base) -> None:
    tokens = sum(len(base.tokenizer(text)["input_ids"]) for text in TEXTS[:3])
    with pytest.raises(
        EditError, match=rf"at least 960 vectors \(10 times its 96 inputs\); the 3 texts have {tokens} "
    ):
        second_moments(base, [DOWN], TEXTS[:3])


def test_max_tokens_takes_texts_in_their_order(base: Base) -> None:
    found = second_moments(base, [DOWN], TEXTS, max_tokens=100, minimum_ratio=1)[0]
    lengths = [len(base.tokenizer(text)["input_ids"]) for text in TEXTS]
    taken = next(i for i in range(len(TEXTS)) if sum(lengths[:i]) >= 100)
    assert found.count == sum(lengths[:taken])
    assert torch.allclose(found.matrix.double(), reference(base, DOWN, TEXTS[:taken])[0], rtol=1e-4, atol=1e-6)


def test_whitening_solves_with_the_ridge(moment: SecondMoment) -> None:
    keys = torch.randn(4, 96)
    C = moment.matrix.double()
    ridged = C + moment.ridge * C.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    assert torch.allclose(moment.whiten(keys) @ ridged, keys.double(), atol=1e-8)
    assert moment.whiten(keys).dtype == torch.float64
    assert moment.cholesky is moment.cholesky
    assert not torch.allclose(moment.with_ridge(1.0).whiten(keys), moment.whiten(keys))
    with pytest.raises(EditError, match=r"expected keys \[n, 96\]; got \(4, 95\)"):
        moment.whiten(keys[:, 1:])


def test_one_very_long_key_does_not_hide_the_other_keys() -> None:
    ordinary = torch.diag(torch.linspace(0.1, 2, 96))
    direction = torch.zeros(96)
    direction[:2] = torch.tensor([3.0, 4.0]) / 5
    moment = SecondMoment(ordinary + 1e7 * torch.outer(direction, direction), 1000)
    key = torch.ones(1, 96, dtype=torch.float64)
    found = moment.whiten(key)
    expected = torch.linalg.solve(ordinary[2:, 2:].double(), key[0, 2:])
    assert torch.allclose(found[0, 2:], expected, rtol=0.02), "the other directions are weighted as without that key"
    small = ordinary.diagonal()[2:] < 0.5 * moment.matrix.diagonal().median()
    assert NullSpace.of(moment, 0.5).rank == int(small.sum()) + 1  # and a direction beside the long key


def test_a_diagonal_whose_median_is_0_keeps_its_mean_as_scale() -> None:
    sparse = SecondMoment(torch.diag(torch.tensor([1.0, 0.0, 0.0])), 1)
    assert sparse.scale(1 / 3) == 1 / 3
    assert sparse.whiten(torch.ones(1, 3)).isfinite().all()


def test_a_singular_moment_needs_a_ridge() -> None:
    singular = SecondMoment(torch.diag(torch.tensor([1.0, 0.0])), 1, ridge=0.0)
    with pytest.raises(EditError, match="not positive definite"):
        singular.whiten(torch.ones(1, 2))
    assert singular.with_ridge(0.1).whiten(torch.ones(1, 2)).isfinite().all()


def test_tensors_round_trip_and_carry_the_digest(moment: SecondMoment) -> None:
    again = SecondMoment.from_tensors(moment.tensors())
    assert again.digest == moment.digest == digest_tensors(moment.tensors())
    assert (again.count, again.ridge) == (moment.count, moment.ridge)
    assert moment.with_ridge(0.5).digest != moment.digest


def cached(base: Base, folder: Path, texts: list[str] = TEXTS, name: str = DOWN) -> tuple[SecondMoment, bool]:
    """The moment, and whether it was measured (and not read from the cache)."""
    reported: list[str] = []
    found = second_moments(
        base, [name], texts, cache=folder, minimum_ratio=5, progress=lambda what, *_: reported.append(what)
    )[0]
    return found, bool(reported)


def test_the_cache_answers_only_for_the_same_question(
    base: Base, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first, measured = cached(base, tmp_path)
    assert measured
    again, measured = cached(base, tmp_path)
    assert not measured
    assert again.digest == first.digest
    assert cached(base, tmp_path, [*TEXTS, "more"])[1]
    assert cached(base, tmp_path, name="model.layers.2.mlp.down_proj")[1]
    assert cached(Base.of(tiny_model("llama", tokenizer, seed=1), tokenizer), tmp_path)[1]
    assert len(list(tmp_path.iterdir())) == 4  # and no temporary file


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:100]])
def test_a_damaged_cache_is_noticed_and_measured_again(
    base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    first, _ = cached(base, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        again, measured = cached(base, tmp_path)
    assert measured
    assert again.digest == first.digest
    assert "measured again" in caplog.text
    assert not cached(base, tmp_path)[1]


def test_a_cached_moment_is_held_to_the_minimum_too(base: Base, tmp_path: Path) -> None:
    count = cached(base, tmp_path)[0].count
    with pytest.raises(EditError, match=f"the {len(TEXTS)} texts have {count} tokens"):
        second_moments(base, [DOWN], TEXTS, cache=tmp_path, minimum_ratio=1000)
