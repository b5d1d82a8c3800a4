"""A site with gradient statistics of a tiny base, and patches of edits that are not among those of the statistics."""

from __future__ import annotations

from tests.mend.tiny_training import tiny_edits
from vllm_edit.edit import Edit
from vllm_edit.editing.ultraedit.gradient_site import GradientSite, gradient_site
from vllm_edit.models.base import Base


def made_for(base: Base, rank: int = 64) -> GradientSite:
    return gradient_site(base, tiny_edits()[4:], max_rank=rank)


def judged() -> list[Edit]:
    """Two edits of different subjects, one answer each."""
    return [tiny_edits()[0], tiny_edits()[2]]
