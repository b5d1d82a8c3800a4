"""Tokenizers of the SentencePiece kinds, built from scratch: real tokenizer.json files of a small vocabulary.

All are BPE with byte fallback. They differ in where the sign for a space comes from:

    llama2   a normaliser puts one before every piece of text and replaces spaces ("Prepend", "Replace")
    mistral  a pre-tokenizer puts one at the beginning of the text only ("Metaspace", first)
    gemma    spaces are replaced and nothing is put before
    phi3     as llama2; the tokens of its chat template take the white space after them away
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE, POSITIONS, SENTENCES

KINDS = ("llama2", "mistral", "gemma", "phi3")
_SPACE = "▁"
_NAMED = ["<unk>", "<s>", "</s>", "<pad>"]
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def sentencepiece(kind: str, *, bos: bool = True, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS`; `bos` puts `<s>` before plain text."""
    core = Tokenizer(_model())
    replace = normalizers.Replace(" ", _SPACE)
    whole: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "mistral":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        prepend = [] if kind == "gemma" else [normalizers.Prepend(_SPACE)]
        core.normalizer = normalizers.Sequence([*prepend, replace])
    core.decoder = decoders.Sequence(whole if kind == "gemma" else [*whole, decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(_NAMED)
    core.add_special_tokens([AddedToken(role, rstrip=kind == "phi3", normalized=False) for role in _ROLES])
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as loaded from its files."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _model() -> models.BPE:
    """Merges learnt from the sentences, each word with its space; letters that were not seen are bytes."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(SENTENCES * 2, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    tokens = [*_NAMED, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    return models.BPE(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
