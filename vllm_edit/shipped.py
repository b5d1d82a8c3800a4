"""The model that the package ships: atlas. Whoever only loads or serves it needs nothing else of atlas."""

from __future__ import annotations

from pathlib import Path


def weights_folder() -> Path:
    """The shipped model in Hugging Face layout; `AutoModelForCausalLM` and vLLM load it from here."""
    return Path(__file__).parent / "atlas" / "weights"
