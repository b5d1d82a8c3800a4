"""The benchmark of KnowledgeEditor's parts leaves out what it says."""

from __future__ import annotations

import torch

from benchmarks.knowledge_editor_parts import WITHOUT, without
from tests.knowledge_editor.tiny_editor import editor_for, inputs_of
from tests.mend.tiny_training import tiny_base, tiny_edits


def test_without_all_parts_an_update_is_the_normalised_gradient_times_one_number() -> None:
    base = tiny_base()
    network = editor_for(base)
    digest, inputs = network.digest, inputs_of(base, network, tiny_edits()[:2])
    with torch.no_grad():
        products = {
            name: {module: B @ A for module, (A, B) in without(network, parts)(inputs).items()}
            for name, parts in WITHOUT.items()
        }
    assert network.digest == digest
    for module, gate in zip(network.modules_edited, network.gates, strict=True):
        gradients = inputs.gradients[module]
        normalised = gradients.outputs.mT @ (gate.inputs(gradients.inputs) * gradients.counted[..., None])
        for found, expected in zip(products["the gradient alone"][module], normalised, strict=True):
            cosine = -(found * expected).sum() / (found.norm() * expected.norm())
            assert cosine > 1 - 1e-5
        for name in WITHOUT.keys() - {"whole"}:
            assert not torch.allclose(products[name][module], products["whole"][module], rtol=1e-4)
