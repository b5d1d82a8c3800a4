"""An engine's tokenizer as the rest of the package needs it: a fast one of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_edit.errors import Incompatible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def fast_tokenizer(given: object) -> PreTrainedTokenizerFast:
    """The engine's tokenizer itself.

    Raises:
        Incompatible: it is of another kind, by the setting `tokenizer_mode`.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(given, PreTrainedTokenizerFast):
        raise Incompatible(
            f"expected a fast tokenizer of transformers, got {type(given).__name__}: leave out the tokenizer mode"
        )
    return given
