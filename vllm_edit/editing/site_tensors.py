"""The tensors of a site that compiling needs: second moments, hypernetwork or gradient statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.editing.hypernetworks.hypernetwork import Hypernetwork
from vllm_edit.editing.network_methods import OLDEST, network_method
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics

SiteTensors = SecondMoment | SecondMoments | Hypernetwork[Any] | GradientStatistics


def site_tensors_of(site: Site, tensors: Mapping[str, torch.Tensor]) -> SiteTensors:
    """The second moments, network or gradient statistics of a site, from the tensors in the store.

    Raises:
        Incompatible: the tensors are not those of the site's method.
    """
    if site.statistics is not None:
        return GradientStatistics.from_tensors(site.modules, tensors)
    if site.network is None and len(site.modules) == 1:
        return SecondMoment.from_tensors(dict(tensors))
    if site.network is None:
        return SecondMoments.from_tensors(site.modules, tensors)
    network: Hypernetwork[Any] = network_method(site.network_method or OLDEST).network.from_tensors(
        site.modules, tensors
    )
    return network
