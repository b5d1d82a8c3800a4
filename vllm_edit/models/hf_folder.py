"""A folder in Hugging Face layout as a model, the user's own or downloaded from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from vllm_edit.artefacts.checkpoint import Checkpoint
from vllm_edit.errors import EditError
from vllm_edit.models.attention import attention_options
from vllm_edit.models.source import Read

_QUANTISED = "hf_quant_config.json"
"""File that ModelOpt before 0.31 wrote beside config.json; vLLM reads it, transformers does not."""


@dataclass(frozen=True)
class HfFolder:
    """A model folder. name: the path or hub id that the user gave."""

    name: str
    path: Path

    @property
    def puts_bos(self) -> bool | None:
        """None: a folder has no statement besides the tokenizer itself."""
        return None

    @property
    def files(self) -> Checkpoint:
        return Checkpoint(self.path)

    def config(self) -> PreTrainedConfig:
        """The config, after a check that the folder is a complete, unquantised, text-only model. Reads no weights."""
        if (self.path / "adapter_config.json").exists():
            raise EditError(f"{self.name} is an adapter (adapter_config.json) and no whole model: give its base model")
        if not self.files.weights:
            has_gguf = any(file.suffix == ".gguf" for file in self.path.iterdir())
            instead = "give the GGUF file itself" if has_gguf else "expected *.safetensors or *.bin beside config.json"
            raise EditError(f"{self.name} holds no weights: {instead}")
        self.files.check_whole()
        if kind := self._quantised():
            raise EditError(
                f"{self.name} is quantised ({kind}); expected plain weights: a quantised base is not supported, import "
                "the original model"
            )
        config: PreTrainedConfig = self._loaded(AutoConfig)
        if _is_wrapper(config):
            raise EditError(
                f"{self.name} is a {config.model_type} model, which combines a language model with other inputs; "
                "expected a language model alone: save that part as a model of its own"
            )
        return config

    def dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """The dtype of the folder's weights."""
        own = getattr(config, "dtype", None)
        return own if isinstance(own, torch.dtype) else torch.float32

    def read(self, config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Read:
        options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = self._loaded(AutoModelForCausalLM, **options, **attention_options(config))
        if found["mismatched_keys"]:
            name, got, expected = min(found["mismatched_keys"])
            raise EditError(
                f"{self.name} has {len(found['mismatched_keys'])} tensors of another shape than config.json says: "
                f"{name} is {tuple(got)}, expected {tuple(expected)}"
            )
        if found["missing_keys"]:
            names = sorted(found["missing_keys"])
            raise EditError(
                f"{self.name} has no weights for {len(names)} of the model's tensors ({', '.join(names[:3])} …); "
                "expected a whole causal language model"
            )
        surplus = sorted(found["unexpected_keys"])
        notes = (f"{len(surplus)} tensors are not in the model ({', '.join(surplus[:3])} …)",) if surplus else ()
        return Read(model.eval(), self.tokenizer(), notes)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The folder's tokenizer.

        Raises:
            EditError: it cannot be loaded, or it is slow.
        """
        tokenizer: PreTrainedTokenizerBase = self._loaded(AutoTokenizer)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise EditError(
                f"{self.name} has a slow tokenizer; expected a fast one, which knows each token's characters"
            )
        return tokenizer

    def _loaded(self, kind: Any, **options: Any) -> Any:
        try:
            with _quiet():
                # By default, transformers asks on the terminal whether to run code from the folder.
                return kind.from_pretrained(self.path, local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # tokenizers raises plain Exception; transformers raises many types for bad files
            reason = " ".join(str(error).split()) or type(error).__name__
            if kind is AutoTokenizer:
                raise EditError(f"the tokenizer of {self.name} cannot be loaded: {reason}") from error
            raise EditError(f"{self.name} cannot be loaded as a causal language model: {reason}") from error

    def _quantised(self) -> str:
        """The quantisation method of the weights; "" for plain weights."""
        config = self.files.config
        text = config.get("text_config")
        named = [config, text] if isinstance(text, dict) else [config]
        stored = [part.get(key) for part in named for key in ("quantization_config", "compression_config")]
        kinds = [kind.get("quant_method", "") if isinstance(kind, dict) else kind for kind in stored if kind]
        if (self.path / _QUANTISED).exists():
            kinds.append(_QUANTISED)
        return str(kinds[0] or "unknown method") if kinds else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' long warnings about missing tensors, which are errors here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _is_wrapper(config: PreTrainedConfig) -> bool:
    """True if the language model's config is only a part of this config, as in models that also read images."""
    try:
        return config.get_text_config() is not config
    except ValueError:  # there are several text configs
        return True
