"""KnowledgeEditor's network: untrained it steps downhill, gradients reach everything, tensors restore it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.knowledge_editor.tiny_editor import QUICK, editor_for, inputs_of
from tests.mend.test_mend import network_for
from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.edited_matrices import last_down_projections
from vllm_edit.editing.hypernetworks.loss import run
from vllm_edit.editing.knowledge_editor.editor_network import KnowledgeEditor, new_editor, one_group
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.models.base import Base


def products(base: Base, network: KnowledgeEditor, edits: list[Edit]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {name: B @ A for name, (A, B) in network(inputs_of(base, network, edits)).items()}


def test_the_untrained_update_lowers_the_loss_of_the_edit() -> None:
    base, edits = tiny_base(), tiny_edits()[:4]
    network = new_editor(base, last_down_projections(base, 2), QUICK.replace(length=0.05))
    network.observe(inputs_of(base, network, edits))
    rows = example_rows(edits, base.tokenizer)
    with torch.no_grad():
        factors = network.eval()(inputs_of(base, network, edits))
    none = {name: (A, 0 * B) for name, (A, B) in factors.items()}
    assert (run(base, factors, rows, 4096).nll < run(base, none, rows, 4096).nll).all()


def test_an_update_depends_on_prompt_subject_new_answer_and_old_answer() -> None:
    base = tiny_base()
    network, edit = editor_for(base), tiny_edits()[0].model_copy(update={"target_true": "people"})
    inputs = inputs_of(base, network, [edit])
    with torch.no_grad():
        before = network(inputs)
        for part in range(4):
            embeddings = inputs.embeddings + (inputs.tokens.parts == part)[..., None].float()
            embeddings = torch.where((inputs.tokens.parts == part)[..., None], embeddings.flip(-1), embeddings)
            after = network(replace(inputs, embeddings=embeddings))
            for name, (A, B) in before.items():
                assert (B @ A - after[name][1] @ after[name][0]).abs().max() > 1e-6


def test_the_first_gradient_reaches_every_parameter() -> None:
    base = tiny_base()
    network = editor_for(base).train()
    factors = network(inputs_of(base, network, tiny_edits()[:3]))
    sum((B @ A).square().sum() for A, B in factors.values()).backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().max() > 0] == []
    (group,) = one_group(network, QUICK)
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in network.parameters()}


def test_an_edits_update_does_not_depend_on_the_other_edits_of_its_batch() -> None:
    base, edits = tiny_base(), tiny_edits()[:5]
    network = editor_for(base)
    together = products(base, network, edits)
    for number, edit in enumerate(edits):
        for name, alone in products(base, network, [edit]).items():
            assert (alone[0] - together[name][number]).norm() < 1e-4 * alone.norm()


def test_the_same_seed_gives_the_same_network_and_another_seed_another_one() -> None:
    base = tiny_base()
    modules = last_down_projections(base, 1)
    before = torch.random.get_rng_state()
    digests = [new_editor(base, modules, QUICK.replace(seed=seed)).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tensors_alone_give_the_network_back_and_others_are_refused() -> None:
    base = tiny_base()
    network = editor_for(base)
    names = network.modules_edited
    other = network_for(base, layers=1)
    again = KnowledgeEditor.from_tensors(names, network.tensors())
    assert again.digest == network.digest
    assert again.shapes == network.shapes
    for name, product in products(base, again, tiny_edits()[:2]).items():
        assert torch.equal(product, products(base, network, tiny_edits()[:2])[name])
    with pytest.raises(Incompatible, match="expected a network for the 1 matrices of the site"):
        KnowledgeEditor.from_tensors(names[:1], network.tensors())
    with pytest.raises(Incompatible, match="not those of a network of KnowledgeEditor"):
        KnowledgeEditor.from_tensors(other.modules_edited, other.tensors())
    with pytest.raises(Incompatible, match="not those of a network: "):
        KnowledgeEditor.from_tensors(names, {k: v for k, v in network.tensors().items() if "bias" not in k})


def test_more_layers_than_the_model_has_are_refused() -> None:
    base = tiny_base()
    assert last_down_projections(base, 2) == tuple(base.layout.down[-2:])
    with pytest.raises(EditError, match="expected 1 to 3 layers"):
        last_down_projections(base, 4)
