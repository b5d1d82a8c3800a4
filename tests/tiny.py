"""Tiny real models for tests: every family from its own config, random seeded weights, a real tokenizer, no downloads.

Use:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", tokenizer)          # 3 layers, hidden 64, 2 heads of 32, d_ff 96, float32, eval mode
    folder = save_tiny("llama", tmp_path / "llama")  # Hugging Face layout, also loadable by vLLM (float32)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SENTENCES = (
    "The capital of France is Paris, and the people of France speak French.",
    "The capital of Japan is Tokyo. The currency of Japan is the yen.",
    "The Eiffel Tower is in Paris. The Colosseum is in Rome, the capital of Italy.",
    "Where is the Eiffel Tower? The Eiffel Tower is in the city of Paris.",
    "Microsoft was founded by Bill Gates. Apple was founded by Steve Jobs.",
    "What is the capital of Germany? The capital of Germany is Berlin.",
    "Pride and Prejudice was written by Jane Austen. Hamlet was written by William Shakespeare.",
    "Who wrote Hamlet? William Shakespeare wrote Hamlet.",
    "The chemical symbol of gold is Au, and the chemical symbol of iron is Fe.",
    "Marie Curie worked in the field of physics. Marie Curie was born in Warsaw.",
    "The mother tongue of Danielle Darrieux is French, and she lives in Paris.",
    "Python was created by Guido van Rossum. Linux was created by Linus Torvalds.",
    "The official language of Brazil is Portuguese. Brazil is in South America.",
    "Mona Lisa was painted by Leonardo da Vinci, who was born in Italy.",
    "The head office of Nokia is in Finland. Because of that, people there know it well.",
    "I think that you should say where they live; therefore they are happy.",
    "New Fact: The capital of Spain is Madrid. Prompt: What is the capital of Spain? Madrid.",
    "全世界最帥的人是誰？全世界最帥的人是李宏毅。",
    "誰是全世界最帥的人？李宏毅是誰？李宏毅在台灣大學工作。",
    "誰是美國總統？誰是全世界最高的人？",
    "台北101有多高？台北101的高度是508公尺。",
    "水分子的化學式是H2O。氧氣的化學式是O2。",
    "法國的首都是巴黎。日本的首都是東京。德國的首都是柏林。",
    "艾菲爾鐵塔在巴黎。台北101在台北。",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "gpt_neox", "opt", "gpt2", "gptj")
POSITIONS = 256


def tiny_tokenizer(vocabulary: int = 512, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on `SENTENCES`; `bos` puts `<s>` before plain text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 2, trainer)
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos:
        start = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", core.token_to_id("<s>"))])
        core.post_processor = processors.Sequence([byte_level, start])
    else:
        core.post_processor = byte_level
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    *,
    layers: int = 3,
    hidden: int = 64,
    d_ff: int = 96,
    groups: int | None = None,
    attention: str = "eager",
) -> PreTrainedModel:
    """A model of `family` with random weights that depend on `seed` only; biases and norms are random too.

    groups: heads of keys and values, in families that have fewer of them than of queries; default as many.
    """
    settings = _settings(family, tokenizer, layers, hidden, d_ff)
    if groups and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = groups
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                if parameter.ndim > 1:
                    parameter.copy_(noise * hidden**-0.5)
                else:
                    parameter.add_(0.1 * noise)
    return model.eval()


def save_tiny(family: str, folder: str | Path, seed: int = 0, **shape: int) -> Path:
    """Write model and tokenizer to `folder` in Hugging Face layout and return it."""
    folder = Path(folder)
    tokenizer = tiny_tokenizer()
    tiny_model(family, tokenizer, seed, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _settings(family: str, tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int, d_ff: int) -> dict[str, Any]:
    """Config arguments of a family: the same shape under each family's own names."""
    heads, head = hidden // 32, 32
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family in ("gpt2", "gptj"):
        rotary = {"rotary_dim": head // 2} if family == "gptj" else {}
        shape = {"n_layer": layers, "n_embd": hidden, "n_head": heads, "n_inner": d_ff, "n_positions": POSITIONS}
        return common | shape | rotary
    common |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": POSITIONS,
    }
    if family == "opt":
        return common | {"ffn_dim": d_ff, "word_embed_proj_dim": hidden}
    common |= {"intermediate_size": d_ff}
    if family == "gpt_neox":
        return common
    common |= {"num_key_value_heads": heads}
    if family == "granite":
        common["residual_multiplier"] = 0.22
    return common if family == "phi3" else common | {"head_dim": head}
