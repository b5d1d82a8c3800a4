"""The network starts as the plain gradient step downhill, normalises by its training statistics, and learns its α."""

from __future__ import annotations

import pytest
import torch

from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.gradients import TokenGradients, token_gradients
from vllm_edit.editing.hypernetworks.normalisation import Normalisation
from vllm_edit.editing.mend.mend_settings import MendTrainingSettings
from vllm_edit.editing.mend.network import MendNetwork, parameter_groups
from vllm_edit.errors import Incompatible
from vllm_edit.models.rows import Batch, answer_scores, run_batch

SHAPES = {"a": (3, 5), "b": (5, 3), "c": (3, 5)}


def random_gradients(edits: int = 2, tokens: int = 4) -> dict[str, TokenGradients]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: TokenGradients.of(
            torch.randn(edits, tokens, d_in, generator=generator),
            torch.randn(edits, tokens, d_out, generator=generator),
        )
        for name, (d_out, d_in) in SHAPES.items()
    }


def test_untrained_it_is_a_step_of_alpha_against_the_gradient() -> None:
    network, gradients = MendNetwork(SHAPES, rank=2, alpha=0.25).eval(), random_gradients()
    network.unit.copy_(torch.tensor([1.0, 2.0, 3.0]))
    for unit, (name, (A, B)) in zip((1, 2, 3), network(gradients).items(), strict=True):
        assert torch.allclose(B @ A, -0.25 * unit * gradients[name].dense(), atol=1e-6)


def test_the_untrained_step_lowers_the_loss_of_a_real_model() -> None:
    base = tiny_base()
    row, name = example_rows(tiny_edits()[:1], base.tokenizer)[0], base.layout.down[-1]
    gradients = token_gradients(base.model, [name], [row], tokens=4096)
    weight = base.model.get_submodule(name).weight
    A, B = MendNetwork({name: tuple(weight.shape)}, rank=2, alpha=0.05).eval()(gradients)[name]
    batch = Batch.of([row], [0], base.device)
    with torch.no_grad():
        before = answer_scores(run_batch(base.model, batch), batch)[0]
        weight.add_((B @ A)[0])
        after = answer_scores(run_batch(base.model, batch), batch)[0]
    assert after < before - 0.01


def test_matrices_of_one_shape_share_a_transform_and_differ_by_scale_and_shift() -> None:
    network = MendNetwork(SHAPES, rank=2)
    assert sorted(network.transforms) == ["3x5", "5x3"]
    gradients = random_gradients()
    gradients["c"] = gradients["a"]
    with torch.no_grad():
        for layer in network.transforms["3x5"].layers:
            layer.U.normal_(generator=torch.Generator().manual_seed(2))
        same = network(gradients)
        network.transforms["3x5"].layers[1].shift[1] += 1.0
        other = network(gradients)
    assert torch.equal(same["a"][0], same["c"][0])
    assert torch.equal(other["a"][0], same["a"][0])
    assert not torch.allclose(other["c"][0], same["c"][0])


def test_tokens_that_do_not_count_get_no_update_whatever_the_network_learned() -> None:
    network, gradients = MendNetwork(SHAPES, rank=2), random_gradients()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "shift")):
                parameter.fill_(1.0)
    inputs, outputs = gradients["a"].inputs.clone(), gradients["a"].outputs.clone()
    outputs[0, 2] = 0
    gradients["a"] = TokenGradients.of(inputs, outputs)
    A, B = network(gradients)["a"]
    assert not A[0, 2].any()
    assert not B[0, :, 2].any()
    assert A[1, 2].any()


def test_every_parameter_is_in_one_group_and_alpha_alone_in_its_own() -> None:
    network = MendNetwork(SHAPES, rank=2)
    main, own = parameter_groups(network, MendTrainingSettings(rate=1e-4, alpha_rate=1e-2))
    assert own["params"] == [network.alpha]
    assert len(main["params"]) + 1 == len(list(network.parameters()))
    assert all(parameter is not network.alpha for parameter in main["params"])


def test_alphas_step_is_made_by_its_own_gradient_at_its_own_rate() -> None:
    network = MendNetwork(SHAPES, rank=2)
    optimiser = torch.optim.Adam(parameter_groups(network, MendTrainingSettings(rate=1e-4, alpha_rate=1e-2)))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    sum(B.sum() + A.sum() for A, B in network(random_gradients()).values()).backward()
    assert network.alpha.grad is not None
    assert network.alpha.grad.abs().min() > 0
    optimiser.step()
    moved = {name: float((value.detach() - before[name]).abs().max()) for name, value in network.named_parameters()}
    assert moved["alpha"] == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is its rate
    assert moved["transforms.3x5.layers.0.U"] == pytest.approx(1e-4, rel=1e-3)


def test_running_statistics_are_those_of_all_vectors_and_rest_outside_training() -> None:
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.01, 0.0]) + 3
    normalise = Normalisation(4)
    assert torch.equal(normalise(vectors), vectors)
    for block in vectors.split([1, 20, 29]):
        normalise.update(block)
    expected = (vectors - vectors.mean(0)) / vectors.std(0)
    assert torch.allclose(normalise(vectors)[:, :3], expected[:, :3], rtol=1e-3, atol=1e-3)
    assert not normalise(vectors)[:, 3].any()
    moved = (vectors + torch.tensor([0.0, 0.0, 0.0, 1.0])).requires_grad_()
    for found in (normalise(moved), normalise.scaled(moved)):
        assert not found[:, 3].any()
        found.sum().backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    before = {name: value.clone() for name, value in normalise.state_dict().items()}
    normalise.eval()
    normalise.update(vectors * 100)
    assert all(torch.equal(value, before[name]) for name, value in normalise.state_dict().items())


def test_tensors_alone_give_the_network_back_and_others_are_refused() -> None:
    network, gradients = MendNetwork(SHAPES, rank=2, seed=3), random_gradients()
    network.observe(gradients)
    again = MendNetwork.from_tensors(list(SHAPES), network.tensors())
    assert again.shapes == SHAPES
    assert again.digest == network.digest
    for name, (A, B) in network.eval()(gradients).items():
        assert torch.equal(again(gradients)[name][0], A)
        assert torch.equal(again(gradients)[name][1], B)
    with pytest.raises(Incompatible, match="expected a network for the 2 matrices"):
        MendNetwork.from_tensors(["a", "b"], network.tensors())
    with pytest.raises(Incompatible, match="not those of a network"):
        MendNetwork.from_tensors(list(SHAPES), {k: v for k, v in network.tensors().items() if "bias" not in k})
