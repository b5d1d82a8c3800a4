"""The token gradients of an edit's answer: at the tokens that predict it, after plain prompt and chat turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.gradients import TokenGradients, token_gradients
from vllm_edit.models.base import Base
from vllm_edit.models.rows import Row


def answer_gradients(
    base: Base, modules: Sequence[str], edits: Sequence[Edit], tokens: int
) -> dict[str, TokenGradients]:
    """Every module's gradients of n edits, at the tokens that predict the new answers. The base is not changed.

    Args:
        modules: module names.
        tokens: maximum number of tokens in one forward pass, padding included.

    Returns:
        Module name → gradients [n, T]: the answer's tokens after the plain prompt, then those after the chat turn, if
        the model has a chat template.
    """
    forms = (False, True) if getattr(base.tokenizer, "chat_template", None) else (False,)
    parts = []
    for chat in forms:
        rows = example_rows(edits, base.tokenizer, chat)
        found = token_gradients(base.model, modules, rows, tokens)
        parts.append({name: _of_answers(gradients, rows) for name, gradients in found.items()})
    return {
        name: TokenGradients(
            inputs=torch.cat([part[name].inputs for part in parts], 1),
            outputs=torch.cat([part[name].outputs for part in parts], 1),
            counted=torch.cat([part[name].counted for part in parts], 1),
        )
        for name in modules
    }


def _of_answers(gradients: TokenGradients, rows: Sequence[Row]) -> TokenGradients:
    """The gradients at the tokens that predict each row's answer, [n, length of the longest answer]."""
    device = gradients.inputs.device
    firsts = torch.tensor([len(row.ids) - 1 for row in rows], device=device)  # [n]
    lengths = torch.tensor([len(row.answer) for row in rows], device=device)  # [n]
    steps = torch.arange(int(lengths.max()), device=device)  # [m]
    places = (firsts[:, None] + steps).clamp_max(gradients.inputs.shape[1] - 1)  # [n, m]
    line = torch.arange(len(rows), device=device)[:, None]
    predicting = (steps < lengths[:, None])[..., None]  # [n, m, 1]
    return TokenGradients.of(gradients.inputs[line, places] * predicting, gradients.outputs[line, places] * predicting)
