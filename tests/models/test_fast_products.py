"""Products in bfloat16: close to the model's own, differentiable, and gone afterwards."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from vllm_edit.models import fast_products as module
from vllm_edit.models.fast_products import fast_products

IDS = torch.arange(3, 11)[None]


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bfloat16 units, whatever this one has: the products are right without them, only slower."""
    monkeypatch.setattr(module, "has_units", lambda: True)


def model_of(family: str) -> torch.nn.Module:
    return tiny_model(family, tiny_tokenizer())


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_logits_and_gradients_are_close_and_the_models_own_come_back(family: str) -> None:
    model = model_of(family)
    embedding = model.get_input_embeddings()  # type: ignore[operator]

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        states = embedding(IDS).detach().requires_grad_()
        logits = model(inputs_embeds=states).logits
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[..., 5].sum(), states)
        return logits.detach(), gradient

    logits, gradient = run()
    with fast_products([model]):
        fast_logits, fast_gradient = run()
    assert fast_logits.dtype == torch.float32
    assert not torch.equal(fast_logits, logits)
    assert (fast_logits - logits).abs().max() < 0.03 * logits.abs().max()
    assert torch.cosine_similarity(fast_gradient.flatten(), gradient.flatten(), dim=0) > 0.99
    assert all(torch.equal(now, before) for now, before in zip(run(), (logits, gradient), strict=True))


@pytest.mark.usefixtures("units")
def test_the_models_own_products_come_back_after_an_exception() -> None:
    model = model_of("llama")
    before = model(IDS).logits
    with pytest.raises(RuntimeError, match="stop"), fast_products([model]):
        raise RuntimeError("stop")
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.usefixtures("units")
def test_only_the_modules_that_are_named_multiply_in_bfloat16() -> None:
    model = model_of("llama")
    first, second = model.model.layers[:2]  # type: ignore[index,union-attr]
    with fast_products([second]):
        assert "forward" in second.mlp.down_proj.__dict__
        assert "forward" not in first.mlp.down_proj.__dict__


@pytest.mark.usefixtures("units")
def test_one_inside_the_other_leaves_the_outer_one_as_it_was() -> None:
    model = model_of("llama")
    with fast_products([model]):
        outer = model(IDS).logits
        with fast_products([model]):
            assert torch.equal(model(IDS).logits, outer)
        assert torch.equal(model(IDS).logits, outer)


def test_without_units_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_units", lambda: False)
    model = model_of("llama")
    before = model(IDS).logits
    with fast_products([model]):
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.usefixtures("units")
def test_a_model_that_is_in_bfloat16_already_is_left_alone() -> None:
    model = model_of("llama").to(torch.bfloat16)
    before = model(IDS).logits
    with fast_products([model]):
        assert torch.equal(model(IDS).logits, before)
