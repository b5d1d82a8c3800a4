"""CausalLM: the type of a causal language model of transformers, with the calls that this package makes.

Type checkers read it in place of transformers' types, which say little: a call of a model returns Any there, and
`generate` belongs to a mixin. It is a class and no protocol, because hooks need an `nn.Module`, which a protocol cannot
extend. At run time it is `PreTrainedModel`, and `causal_lm` checks the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, cast

from transformers import GenerationMixin, PreTrainedModel

from vllm_edit.errors import EditError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Cache, GenerationConfig, LogitsProcessorList

    class Output(Protocol):
        """The result of a forward pass."""

        @property
        def logits(self) -> torch.Tensor:
            """[batch, positions that reach the head, vocabulary]."""

        @property
        def past_key_values(self) -> Cache:
            """Keys and values of all tokens, in a pass with `use_cache`."""

    class CausalLM(PreTrainedModel):
        """A decoder with a language-modelling head, and with a generation config."""

        generation_config: GenerationConfig

        def __call__(
            self,
            *,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Cache | None = None,
            use_cache: bool = ...,
        ) -> Output:
            """A forward pass.

            Args:
                input_ids: [batch, seq].
                attention_mask: [batch, cached + seq], 1 for tokens and 0 for padding; or [batch, 1, seq, cached + seq],
                    added to the attention scores.
                position_ids: [batch, seq].
                past_key_values: keys and values of earlier tokens; the pass appends those of `input_ids`.
            """

        def generate(
            self,
            *,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            generation_config: GenerationConfig,
            logits_processor: LogitsProcessorList,
            past_key_values: Cache | None = ...,
        ) -> torch.Tensor:
            """`input_ids` and the ids that follow, [batch, seq + new]."""

        def eval(self) -> Self: ...

        def to(self, place: torch.device | torch.dtype | str) -> Self: ...  # type: ignore[override]  # untyped there

        def get_input_embeddings(self) -> nn.Embedding: ...

        def get_output_embeddings(self) -> nn.Linear: ...

else:
    CausalLM = PreTrainedModel


def causal_lm(model: PreTrainedModel) -> CausalLM:
    """The model itself.

    Raises:
        EditError: transformers cannot generate text with a model of this class.
    """
    if not isinstance(model, GenerationMixin):
        raise EditError(f"expected a model that generates text, got {type(model).__name__}")
    return cast("CausalLM", model)
