"""A GGUF file as a model: transformers reads it; metadata that transformers ignores are applied afterwards."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from vllm_edit.errors import EditError
from vllm_edit.models.attention import attention_options
from vllm_edit.models.gguf_header import GgufHeader, Value
from vllm_edit.models.source import Read
from vllm_edit.models.turn_end import turn_end

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

_NEEDED = ("gguf", "accelerate")
# llama.cpp's defaults for a file without `add_bos_token`: src/llama-vocab.cpp, `llama_vocab::impl::load`.
_BOS_BY_MODEL = {"llama": True, "gpt2": False}
_BOS_BY_PRE_TOKENIZER = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), True),
    **dict.fromkeys(("tekken", "chameleon"), True),
}
_FIRST_BOS = 1  # default BOS id of a SentencePiece vocabulary, in llama.cpp and in SentencePiece


@dataclass(frozen=True)
class GgufFile:
    """One GGUF file. Quantised weights are unpacked to float32."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @cached_property
    def header(self) -> GgufHeader:
        """The file's metadata and tensor names."""
        missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
        if missing:
            raise EditError(f"reading a GGUF file needs {' and '.join(missing)}: pip install 'vllm-edit[gguf]'")
        if not self.path.is_file():
            raise EditError(f"there is no file {self.path}; expected a GGUF file")
        header = GgufHeader.read(self.path)
        parts = int(header.metadata.get("split.count", 1))
        if parts > 1:
            raise EditError(f"{self.path} is one of {parts} parts; join them first (llama-gguf-split --merge)")
        return header

    @property
    def puts_bos(self) -> bool | None:
        """The value of `tokenizer.ggml.add_bos_token`, or else llama.cpp's default for the kind of tokenizer; None for
        an unknown kind."""
        kind = str(self._tokenizer_key("model"))
        default = _BOS_BY_MODEL.get(kind)
        if kind == "gpt2":
            default = _BOS_BY_PRE_TOKENIZER.get(str(self._tokenizer_key("pre")), default)
        stated = self._tokenizer_key("add_bos_token")
        return default if stated is None else bool(stated)

    def config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = self._loaded(AutoConfig)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """float32, the dtype of unpacked weights."""
        return torch.float32

    def read(self, config: PreTrainedConfig) -> Read:
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, found = self._loaded(AutoModelForCausalLM, **options, **attention_options(config))
        if found["missing_keys"]:
            names = sorted(found["missing_keys"])
            raise EditError(
                f"{self.path} has no weights for {len(names)} of the model's tensors ({', '.join(names[:3])} …), or "
                "transformers does not know their names in the file; use a folder in Hugging Face layout instead"
            )
        _forget_quantisation(model)
        tokenizer = self._loaded(AutoTokenizer)
        self._name_bos(tokenizer)
        ends = self._ends(model, tokenizer)
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
        return Read(model.eval(), tokenizer, self._notes(model))

    def _loaded(self, kind: Any, **options: Any) -> Any:
        architecture = self.header.metadata.get("general.architecture")  # raises for a file that is not GGUF
        try:
            return kind.from_pretrained(self.path.parent, gguf_file=self.path.name, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EditError(f"transformers cannot read {self.path} (architecture {architecture}): {reason}") from error

    def _tokenizer_key(self, name: str) -> Value | None:
        return self.header.metadata.get(f"tokenizer.ggml.{name}")

    def _token(self, name: str) -> int | None:
        """The id of one of the tokenizer's tokens."""
        number = self._tokenizer_key(f"{name}_token_id")
        return None if number is None else int(number)

    def _name_bos(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Set the tokenizer's BOS to the file's, or to SentencePiece's default if it is missing but needed."""
        number = self._token("bos")
        if number is None and self.puts_bos and self._tokenizer_key("model") == "llama":
            number = _FIRST_BOS
        if number is not None and tokenizer.bos_token_id != number:
            tokenizer.bos_token = tokenizer.convert_ids_to_tokens(number)

    def _ends(self, model: CausalLM, tokenizer: PreTrainedTokenizerFast) -> list[int]:
        """Ids that end an answer. The file has only one end of text; chat models often end turns with another token."""
        configured = model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        found = [*ends, self._token("eot"), turn_end(tokenizer)]
        return list(dict.fromkeys(int(end) for end in found if end is not None))

    def _notes(self, model: CausalLM) -> tuple[str, ...]:
        """Notes about tensors and position scalings that transformers silently ignores."""
        notes = []
        surplus = len(self.header.tensors) - len(list(model.parameters()))
        if surplus > 0:
            outside = [name for name in self.header.tensors if name.startswith("rope_")]
            named = f" ({', '.join(outside)})" if outside else ""
            notes.append(
                f"{surplus} of the file's tensors are not in the model: transformers does not read them{named}"
            )
        scalings = {value for key, value in self.header.metadata.items() if key.endswith(".rope.scaling.type")}
        read = getattr(model.config, "rope_parameters", None) or {}
        if scalings - {"none"} and read.get("rope_type", "default") == "default":
            notes.append("the file scales positions for long texts; transformers does not read that")
        return tuple(notes)


def _forget_quantisation(model: CausalLM) -> None:
    """Remove the flags that prevent saving an unpacked model as a plain model. The weights are not changed."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
