"""KnowledgeEditor's network for a tiny base, and quick settings of its training."""

from __future__ import annotations

from tests.mend.tiny_training import tiny_edits
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.edited_matrices import last_down_projections
from vllm_edit.editing.knowledge_editor.editor_network import EditorInputs, KnowledgeEditor, new_editor
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings
from vllm_edit.models.base import Base

QUICK = KnowledgeEditorTrainingSettings(
    steps=6, edits=3, taught=2, kept=2, texts=1, units=8, warm=4, validation=0.3, validated=2, validate_every=2
)


def editor_for(base: Base, layers: int = 2) -> KnowledgeEditor:
    """An untrained network whose statistics are those of a few edits; its updates are long enough to have an effect."""
    network = new_editor(base, last_down_projections(base, layers), QUICK.replace(length=2.0))
    network.observe(inputs_of(base, network, tiny_edits()[:5]))
    return network.eval()


def inputs_of(base: Base, network: KnowledgeEditor, edits: list[Edit]) -> EditorInputs:
    return network.inputs(base, edits, example_rows(edits, base.tokenizer), 4096)
