"""The methods with a hypernetwork, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vllm_edit.editing.hypernetworks.edited_matrices import last_down_projections, last_matrices
from vllm_edit.editing.hypernetworks.network_method import NetworkMethod
from vllm_edit.editing.knowledge_editor.constraint import Constraint
from vllm_edit.editing.knowledge_editor.editor_network import KnowledgeEditor, new_editor, one_group
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings
from vllm_edit.editing.mend.mend_settings import MendTrainingSettings
from vllm_edit.editing.mend.network import MendNetwork, new_network, parameter_groups
from vllm_edit.editing.mend.weighted_sum import WeightedSum
from vllm_edit.errors import EditError

NETWORK_METHODS: Mapping[str, NetworkMethod[Any, Any]] = MappingProxyType(
    {
        "mend": NetworkMethod(
            MendNetwork,
            MendTrainingSettings,
            last_matrices,
            new_network,
            parameter_groups,
            lambda settings: WeightedSum(settings.teach_weight, settings.keep_weight),
        ),
        "ke": NetworkMethod(
            KnowledgeEditor,
            KnowledgeEditorTrainingSettings,
            last_down_projections,
            new_editor,
            one_group,
            lambda settings: Constraint(
                settings.multiplier,
                settings.multiplier_rate,
                settings.bound,
                settings.least_bound,
                settings.anneal,
            ),
        ),
    }
)
"""Name → method. A new method with a network is registered here, and in `METHODS`."""
OLDEST = "mend"
"""The method of cards and sites that name no method: there was no other."""


def network_method(name: str) -> NetworkMethod[Any, Any]:
    """The method with this name. Raises EditError, which lists all names, if it is none with a network."""
    if name not in NETWORK_METHODS:
        raise EditError(f"no method with a network is named {name!r}; expected {' or '.join(sorted(NETWORK_METHODS))}")
    return NETWORK_METHODS[name]
