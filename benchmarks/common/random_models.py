"""Models of a published shape with random weights: what an edit costs there needs no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from vllm_edit.artefacts.site import Context
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.editing.site.sites import PUBLISHED_DEPTH, MadeSite, fixed_site
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.shipped import weights_folder

PREFIXES = ("It is known. ", "Some say so. ", "There is more to it. ", "Here is a fact. ")
_LEAST_TOKENS = 4096


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    hidden: int
    layers: int
    d_ff: int
    heads: int
    kv_heads: int
    vocabulary: int

    def changed(self, given: Sequence[str]) -> Shape:
        """The shape with fields replaced by `name=value`.

        Raises:
            SystemExit: one is not a field of a shape, or its value no positive whole number.
        """
        known = [field.name for field in fields(self)]
        values: dict[str, int] = {}
        for text in given:
            name, _, value = text.partition("=")
            if name not in known or not value.isdecimal() or not int(value):
                raise SystemExit(
                    f"expected --change FIELD=N with N > 0 and FIELD one of {', '.join(known)}; got {text!r}"
                )
            values[name] = int(value)
        return replace(self, **values)


SHAPES: Mapping[str, Shape] = MappingProxyType({"llama-3-8b": Shape(4096, 32, 14336, 32, 8, 128_256)})


def random_base(name: str, shape: Shape) -> Base:
    """A Llama of the shape with seeded random weights and atlas's tokenizer: bfloat16 on a GPU, float32 without one.

    Raises:
        SystemExit: the vocabulary does not hold the tokenizer's tokens.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights_folder(), local_files_only=True)
    if shape.vocabulary < len(tokenizer):
        raise SystemExit(f"the shape's vocabulary must be at least {len(tokenizer)}; got {shape.vocabulary}")
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.d_ff,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=False,
    )
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if gpu else torch.float32)
    return Base.of(model.eval(), tokenizer, name)


def random_site(base: Base, texts: Sequence[str]) -> MadeSite:
    """The published site. Its second moment is of twice d_in tokens at most: enough for time, not for quality."""
    layer = round(PUBLISHED_DEPTH * len(base.layout.layers))
    module = base.layout.down[layer]
    d_in = linear_shape(find_module(base.model, module))[1]
    (moment,) = second_moments(base, [module], texts, minimum_ratio=1, max_tokens=max(_LEAST_TOKENS, 2 * d_in))
    contexts = (Context(), *(Context(prefix=prefix) for prefix in PREFIXES), Context(chat=True))
    return fixed_site(base, texts, layer=layer, contexts=contexts, moment=moment)
