"""The second moments of a site with several modules: one for each, measured on the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from vllm_edit.digest import digest_tensors
from vllm_edit.editing.second_moment import SecondMoment


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Module → its second moment, in the order in which the modules run.

    The tensors of a single module are those of its `SecondMoment`, so that its site has the same digest.
    """

    by_module: Mapping[str, SecondMoment]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the store contains, and `digest` identifies."""
        if len(self.by_module) == 1:
            (only,) = self.by_module.values()
            return only.tensors()
        return {
            f"{module}.{name}": tensor
            for module, moment in self.by_module.items()
            for name, tensor in moment.tensors().items()
        }

    @classmethod
    def from_tensors(cls, modules: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> SecondMoments:
        """The second moments of these modules from their `tensors()`."""
        if len(modules) == 1:
            return cls({modules[0]: SecondMoment.from_tensors(tensors)})
        names = ("matrix", "count", "ridge")
        return cls(
            {
                module: SecondMoment.from_tensors({name: tensors[f"{module}.{name}"] for name in names})
                for module in modules
            }
        )

    @cached_property
    def digest(self) -> str:
        return digest_tensors(self.tensors())

    @property
    def count(self) -> int:
        """Number of vectors in each second moment."""
        return next(iter(self.by_module.values())).count

    @property
    def ridge(self) -> float:
        """The common ridge."""
        return next(iter(self.by_module.values())).ridge
