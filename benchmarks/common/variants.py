"""The methods that benchmarks compare: their names in tables, settings, and the number of layers that they edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NORM_LIMIT = 0.3
"""The least of 0.05, 0.1, 0.2 and 0.3 at which all of atlas's sweep edits, which are never judged, were learnt."""
LAYERS = 3
"""Layers of MEMIT and AlphaEdit, as `vllm-edit store init --method memit` takes."""


@dataclass(frozen=True)
class Variant:
    """A method with settings. layers: of a closed-form site, the last of them the store's."""

    method: str
    layers: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "ROME": Variant("rome"),
        "MEMIT": Variant("memit", LAYERS),
        "EMMET": Variant("memit"),
        "AlphaEdit": Variant("alphaedit", LAYERS),
        "MEND": Variant("mend"),
        "KE": Variant("ke"),
        "UltraEdit": Variant("ultraedit"),
        "FT-M": Variant("ft"),
        "FT-M limited": Variant("ft", settings={"norm_limit": NORM_LIMIT}),
        "LoRA": Variant("lora"),
    }
)
"""Name → the method. IKE, which needs no compiling, is not among them."""
