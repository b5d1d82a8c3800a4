"""A tiny base with a site over its last layers, and settings with which a random model takes edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.editing.examples import LOOSE, bench
from tests.tiny import SENTENCES
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site, Token
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.memit.memit_settings import AlphaEditSettings, MemitSettings
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site.sites import MadeSite, over_layers
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch, Scope

TEXTS = [text for text in SENTENCES for _ in range(4)]
"""Ten vectors for each input of a tiny module, the number that a second moment needs."""
_NAMES = (
    *("fast_products", "whole_words", "forms", "ending", "opening", "same_ending", "most_norm", "steps", "margin"),
    *("learning_rate", "shortening"),
)
_SHARED: dict[str, Any] = {name: getattr(LOOSE, name) for name in _NAMES}
MEMIT = MemitSettings(**_SHARED, damping=0.1)
ALPHAEDIT = AlphaEditSettings(**_SHARED, damping=0.1, null_space=0.2)


@dataclass(frozen=True)
class Layered:
    """A base with a site over several layers and their second moments."""

    base: Base
    site: Site
    moments: SecondMoments

    def compiled(
        self, *edits: Edit, settings: MemitSettings = MEMIT, name: str = "tested", scope: Scope = "all"
    ) -> CompiledPatch:
        """The edits compiled by the method of the settings."""
        patch = Patch(name=name, edits=edits, scope=scope)
        return compile_patch(
            patch, self.base, settings.title, site=self.site, site_tensors=self.moments, settings=settings
        )


def layered(family: str = "llama", token: Token = "last", last: int = 2, **changes: object) -> Layered:
    """A site at layer `last` of a tiny model of `family`, and the layer below it; `changes` replace fields of it."""
    setup = bench(family, token, last, **changes)
    (moment,) = second_moments(setup.base, [setup.site.module], TEXTS, ridge=0.01)
    site = setup.site.model_copy(update={"second_moment": moment.digest, "second_moment_count": moment.count})
    made = over_layers(setup.base, MadeSite(site, moment), range(last - 1, last + 1), TEXTS)
    return Layered(setup.base, made.site, made.moments)
