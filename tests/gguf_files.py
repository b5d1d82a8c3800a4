"""Tiny GGUF files for tests, written with the `gguf` package from a tiny Llama: what llama.cpp's converter writes.

Use:
    path = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=True)           # byte-level BPE
    path = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=None)           # the key is left out
    path = write_gguf(tmp_path / "spm.gguf", llama, SENTENCEPIECE, add_bos=None)        # SentencePiece
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SENTENCEPIECE = "SentencePiece"
_CONTROL, _BYTE, _NORMAL, _UNKNOWN = 3, 6, 1, 2


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | str,
    *,
    add_bos: bool | None,
    architecture: str = "llama",
    pre: str = "gpt-2",
    without: Collection[str] = (),
    lost_tokens: Collection[int] = (),
) -> Path:
    """Write a tiny Llama and a tokenizer with float32 tensors.

    add_bos: value of `tokenizer.ggml.add_bos_token`; None leaves the key out. without: names of tensors in the file to
    leave out. lost_tokens: ids whose spelling is replaced, so that what they stood for cannot be read.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, model.config)
    writer.add_tokenizer_model("llama" if tokenizer == SENTENCEPIECE else "gpt2")
    if isinstance(tokenizer, str):
        _write_sentencepiece(writer, model.config.vocab_size)
    else:
        _write_byte_level(writer, tokenizer, lost_tokens)
        writer.add_tokenizer_pre(pre)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if stored not in without:
            writer.add_tensor(stored, _stored(stored, tensor, model.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_byte_level(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, lost_tokens: Collection[int]
) -> None:
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    special = set(tokenizer.added_tokens_decoder)
    writer.add_token_list([f"lost{number}" if number in lost_tokens else token for number, token in enumerate(tokens)])
    writer.add_token_types([_CONTROL if number in special else _NORMAL for number in range(len(tokens))])
    lost = {tokens[number] for number in lost_tokens}
    merges = [pair for pair in core["merges"] if not lost & {*pair, "".join(pair)}]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _write_sentencepiece(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """`<unk>`, `<s>`, `</s>`, all bytes, ASCII's letters, and enough unused tokens to fill the vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁P", "ar", "is", "aris"]
    tokens += [chr(code) for code in range(33, 127)]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    types += [_NORMAL] * (len(tokens) - len(types))
    tokens += [f"<unused{number}>" for number in range(vocabulary - len(tokens))]
    types += [_CONTROL] * (vocabulary - len(types))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores([-float(number) for number in range(vocabulary)])
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _stored(name: str, tensor: torch.Tensor, config: Any) -> np.ndarray:
    """The tensor in llama.cpp's layout: the halves of a rotation are interleaved in each head's queries and keys."""
    array: np.ndarray = tensor.detach().float().numpy()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = name.split(".")[-2]
    if kind in heads:
        halves = array.reshape(heads[kind], 2, array.shape[0] // heads[kind] // 2, array.shape[1])
        array = halves.swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)
