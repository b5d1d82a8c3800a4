"""A folder in Hugging Face layout as a model, the user's own or downloaded from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from vllm_edit.errors import EditError
from vllm_edit.models.source import Read

_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class HfFolder:
    """`name`: what the user called it, its path or its id on the hub."""

    name: str
    path: Path

    @property
    def puts_bos(self) -> bool | None:
        """None: in a folder only the tokenizer itself states it."""
        return None

    def config(self) -> Any:
        config = self._loaded(AutoConfig)
        if not any(file.suffix in _WEIGHT_SUFFIXES for file in self.path.iterdir()):
            has_gguf = any(file.suffix == ".gguf" for file in self.path.iterdir())
            instead = "give the GGUF file itself" if has_gguf else "expected *.safetensors or *.bin beside config.json"
            raise EditError(f"{self.name} holds no weights: {instead}")
        stored = getattr(config, "quantization_config", None)
        if stored:
            kind = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", stored)
            raise EditError(f"{self.name} is quantised ({kind}); expected plain weights: import the original model")
        return config

    def dtype(self, config: Any) -> torch.dtype:
        """The folder's own."""
        own = getattr(config, "dtype", None)
        return own if isinstance(own, torch.dtype) else torch.float32

    def read(self, config: Any) -> Read:
        model, found = self._loaded(AutoModelForCausalLM, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:
            names = sorted(found["missing_keys"])
            raise EditError(
                f"{self.name} has no weights for {len(names)} of the model's tensors ({', '.join(names[:3])} …); "
                "expected a whole causal language model"
            )
        surplus = sorted(found["unexpected_keys"])
        notes = (f"{len(surplus)} tensors are not in the model ({', '.join(surplus[:3])} …)",) if surplus else ()
        tokenizer = self._loaded(AutoTokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise EditError(
                f"{self.name} has a slow tokenizer; expected a fast one, which knows each token's characters"
            )
        return Read(model.eval(), tokenizer, notes)

    def _loaded(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.path, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EditError(f"{self.name} cannot be loaded as a causal language model: {reason}") from error
