"""KnowledgeEditor's network (arXiv 2104.08164): an encoder of edits, and a gate of the gradient for every matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from vllm_edit.deltas.linear import linear_shape, linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.hypernetworks.gradients import TokenGradients, token_gradients
from vllm_edit.editing.hypernetworks.hypernetwork import Factors, Hypernetwork, ParameterGroups, shapes_of
from vllm_edit.editing.knowledge_editor.edit_encoder import EditEncoder
from vllm_edit.editing.knowledge_editor.edit_tokens import EditTokens
from vllm_edit.editing.knowledge_editor.gradient_gate import GradientGate
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings
from vllm_edit.errors import Incompatible
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row


@dataclass(frozen=True)
class EditorInputs:
    """What the network reads of n edits.

    gradients: module → its gradients. tokens: prompt, new and old answer. embeddings: of the tokens, [n, S, d] float32.
    """

    gradients: Mapping[str, TokenGradients]
    tokens: EditTokens
    embeddings: torch.Tensor


class KnowledgeEditor(Hypernetwork[EditorInputs]):
    """An encoder, and a gate for every matrix."""

    unit: torch.Tensor
    widths: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, int]], width: int, units: int, seed: int = 0) -> None:
        """Make an untrained network.

        Args:
            shapes: edited module → (d_out, d_in), in the site's order.
            width: of the base's embeddings.
            units: of the LSTM in each direction, and of the hidden layers.
            seed: random seed of the initial values.
        """
        super().__init__()
        self.shapes = dict(shapes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = EditEncoder(width, units)
            self.gates = nn.ModuleList(GradientGate(shape, 2 * units, units) for shape in self.shapes.values())
        # ℓ ‖W‖ [matrices], the unit of an update's length.
        self.register_buffer("unit", torch.ones(len(self.shapes)))
        # [matrices, 2]: stores the shapes of the matrices with the tensors.
        self.register_buffer("widths", torch.tensor(list(self.shapes.values())))

    def inputs(self, base: Base, edits: Sequence[Edit], rows: Sequence[Row], tokens: int) -> EditorInputs:
        gradients = token_gradients(base.model, self.modules_edited, rows, tokens)
        read = EditTokens.of(base, edits, rows, tokens)
        table = base.model.get_input_embeddings().weight.detach()
        return EditorInputs(gradients, read, table[read.ids].float())

    def observe(self, inputs: EditorInputs) -> None:
        for name, gate in zip(self.shapes, self.gates, strict=True):
            gate.observe(inputs.gradients[name])  # type: ignore[operator]

    def forward(self, inputs: EditorInputs) -> Factors:
        """A [n, T + 1, d_in] and B [n, d_out, T + 1] of every module."""
        h, states = self.encoder(inputs.embeddings, inputs.tokens.parts, inputs.tokens.lengths)
        factors: Factors = {}
        for name, gate, unit in zip(self.shapes, self.gates, self.unit, strict=True):
            gradients = inputs.gradients[name]
            A, B = gate(h, states[:, : gradients.inputs.shape[1]], gradients)
            factors[name] = A, unit * B
        return factors

    @classmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Self:
        shapes, parts = shapes_of(names, tensors, "ke"), tensors.get("encoder.parts")
        hidden = tensors.get("encoder.lstm.weight_hh_l0")  # [4 · units, units]
        if parts is None or hidden is None or parts.ndim != 2 or hidden.ndim != 2:
            raise Incompatible("the tensors are not those of a network of KnowledgeEditor: it has no encoder")
        return cls(shapes, parts.shape[1], hidden.shape[1]).filled(tensors)


def new_editor(base: Base, modules: Sequence[str], settings: KnowledgeEditorTrainingSettings) -> KnowledgeEditor:
    """An untrained network for the matrices `modules` of `base`, on its device."""
    found = [find_module(base.model, name) for name in modules]
    shapes = dict(zip(modules, map(linear_shape, found), strict=True))
    width = base.model.get_input_embeddings().weight.shape[1]
    network = KnowledgeEditor(shapes, width, settings.units, settings.seed)
    norms = [linear_weight(module).detach().float().norm().cpu() for module in found]
    network.unit.copy_(settings.length * torch.stack(norms))
    return network.to(base.device)


def one_group(network: KnowledgeEditor, settings: KnowledgeEditorTrainingSettings) -> ParameterGroups:
    """All parameters at one rate."""
    return [{"params": list(network.parameters()), "lr": settings.rate}]
