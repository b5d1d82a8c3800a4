"""The tensors of a site that compiling needs: its second moment, or its hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.editing.mend.network import Hypernetwork
from vllm_edit.editing.second_moment import SecondMoment

SiteTensors = SecondMoment | Hypernetwork


def site_tensors_of(site: Site, tensors: Mapping[str, torch.Tensor]) -> SiteTensors:
    """The second moment of a closed-form site, or the network of a MEND site, from the tensors in the store."""
    if site.network is None:
        return SecondMoment.from_tensors(dict(tensors))
    return Hypernetwork.from_tensors(site.modules, tensors)
