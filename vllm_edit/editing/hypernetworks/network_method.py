"""A method with a hypernetwork: its network, and how the network is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vllm_edit.editing.hypernetworks.hypernetwork import Hypernetwork, ParameterGroups
from vllm_edit.editing.hypernetworks.objective import Objective
from vllm_edit.editing.hypernetworks.training_settings import TrainingSettings
from vllm_edit.models.base import Base

N = TypeVar("N", bound=Hypernetwork[Any])
S = TypeVar("S", bound=TrainingSettings)


@dataclass(frozen=True)
class NetworkMethod(Generic[N, S]):
    """A method with a hypernetwork.

    network: the type of its network.
    settings: the type of its training's settings.
    matrices: the matrices to edit in this many last layers of a base (`edited_matrices`).
    new_network: an untrained network for matrices of a base, on its device.
    parameter_groups: the network's parameters with their learning rates; every parameter is in exactly one group.
    objective: the weights of the losses at the beginning of a training.
    """

    network: type[N]
    settings: type[S]
    matrices: Callable[[Base, int], tuple[str, ...]]
    new_network: Callable[[Base, Sequence[str], S], N]
    parameter_groups: Callable[[N, S], ParameterGroups]
    objective: Callable[[S], Objective]
