"""The tensors of a site that compiling needs: its second moments, or its hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.editing.mend.network import Hypernetwork
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments

SiteTensors = SecondMoment | SecondMoments | Hypernetwork


def site_tensors_of(site: Site, tensors: Mapping[str, torch.Tensor]) -> SiteTensors:
    """The second moments of a closed-form site, or the network of a MEND site, from the tensors in the store."""
    if site.network is None and len(site.modules) == 1:
        return SecondMoment.from_tensors(dict(tensors))
    if site.network is None:
        return SecondMoments.from_tensors(site.modules, tensors)
    return Hypernetwork.from_tensors(site.modules, tensors)
