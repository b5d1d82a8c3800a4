"""The model that the package ships: atlas. Loading and serving it needs no other module of atlas."""

from __future__ import annotations

from pathlib import Path


def weights_folder() -> Path:
    """The shipped model in Hugging Face layout; `AutoModelForCausalLM` and vLLM load it from here."""
    return Path(__file__).parent / "atlas" / "weights"
