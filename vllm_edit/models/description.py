"""The shape of a base model and of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_edit.deltas.linear import linear_weight
from vllm_edit.models.base import Base
from vllm_edit.models.bos import puts_bos
from vllm_edit.models.lengths import positions_of


@dataclass(frozen=True)
class Description:
    """The shape of a model.

    folder: the folder of its files.
    hidden, d_ff: outputs and inputs of the MLP's down projection.
    vocabulary: rows of the embedding.
    context: maximum number of tokens, None if the config does not state it.
    bos: the token that the tokenizer adds before plain text, if any.
    """

    folder: Path
    architecture: str
    parameters: int
    layers: int
    hidden: int
    d_ff: int
    vocabulary: int
    context: int | None
    bos: str | None
    chat_template: bool


def describe(name: str | Path) -> Description:
    """Load a base model and describe its structure.

    Raises:
        EditError: there is no such model, or it cannot be loaded or edited.
    """
    base = Base.load(name, device="cpu")
    down = base.model.get_submodule(base.layout.down[0])
    hidden, d_ff = linear_weight(down).shape
    return Description(
        folder=base.folder or Path(name),
        architecture=type(base.model).__name__,
        parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        layers=len(base.layout.layers),
        hidden=hidden,
        d_ff=d_ff,
        vocabulary=len(base.model.get_input_embeddings().weight),
        context=positions_of(base.model),
        bos=base.tokenizer.bos_token if puts_bos(base.tokenizer) else None,
        chat_template=bool(base.tokenizer.chat_template),
    )
