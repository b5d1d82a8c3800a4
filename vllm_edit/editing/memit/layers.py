"""The layers of a site: one site of one module for each, with the metric of the solver there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import System
from vllm_edit.editing.key_metric import Metric
from vllm_edit.editing.rome.keys import Columns
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base


@dataclass(frozen=True, eq=False)
class Layer:
    """One edited layer.

    Attributes:
        site: the site with only this layer's module.
        metric: the metric M there (C⁻¹ of its second moment).
        earlier: K_p [m, d_in], keys of earlier edits that the update must not move (AlphaEdit, arXiv 2410.02355);
            None: none.
    """

    site: Site
    metric: Metric
    earlier: torch.Tensor | None = None

    @property
    def module(self) -> str:
        return self.site.module

    def system(self, columns: Columns, damping: float) -> System:
        """The columns and the earlier keys as one system.

        The earlier keys are columns of share 0. Each has a group of its own, numbered after those of the columns, so
        that it is damped relative to its own k̄ᵀM k̄.
        """
        if self.earlier is None:
            return columns.system(damping)
        first, count = len(columns.groups), len(self.earlier)
        return System.of(
            torch.cat([columns.keys, self.earlier]),
            torch.cat([columns.whitened, self.metric.whiten(self.earlier).float()]),
            [*columns.group_of, *range(first, first + count)],
            damping,
            [*columns.shares, *[0.0] * count],
        )


def layers_of(
    base: Base, site: Site, tensors: SecondMoment | SecondMoments, metric_of: Callable[[SecondMoment], Metric]
) -> tuple[Layer, ...]:
    """The layers of a site, from the first to the last.

    Args:
        tensors: the second moments of the site's modules.
        metric_of: the metric of the method, from a module's second moment.

    Raises:
        EditError: a module is no down projection of the base, or a block of several layers normalises its output.
    """
    moments = SecondMoments({site.module: tensors}) if isinstance(tensors, SecondMoment) else tensors
    layout = base.layout
    unknown = [module for module in site.modules if module not in layout.down]
    if unknown:
        raise EditError(
            f"this method edits MLP down projections, the site has {', '.join(unknown)}: use the method that the site "
            "was made for, or make a store for this method (vllm-edit store init)"
        )
    numbers = [layout.down.index(module) for module in site.modules]
    if len(numbers) > 1 and any(layout.renormed[number] for number in numbers):
        raise EditError(
            f"{base.name} normalises the output of its MLPs, so a residual cannot be spread over several layers; make "
            "a store for one layer (vllm-edit store init)"
        )
    return tuple(
        Layer(site.model_copy(update={"modules": (module,), "layer": number}), metric_of(moments.by_module[module]))
        for module, number in zip(site.modules, numbers, strict=True)
    )
