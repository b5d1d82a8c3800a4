"""Encoder of edits: a bidirectional LSTM over the base's embeddings (arXiv 2104.08164, §3.2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vllm_edit.editing.knowledge_editor.edit_tokens import Part


class EditEncoder(nn.Module):
    """Reads an edit's tokens in both directions. The base's embeddings are inputs and are not trained.

    Departure: a learned vector is added to each token and says its part (prompt, subject, new or old answer), in place
    of separators, so that the tokens of the gradient stay in their places.
    """

    def __init__(self, width: int, units: int) -> None:
        """width: of the embeddings. units: of the LSTM, in each direction."""
        super().__init__()
        self.normalise = nn.LayerNorm(width)
        self.parts = nn.Parameter(0.5 * torch.randn(len(Part), width))
        self.lstm = nn.LSTM(width, units, batch_first=True, bidirectional=True)

    def forward(
        self, embeddings: torch.Tensor, parts: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The edit h [n, 2·units], both directions' last states; and each token's states [n, S, 2·units], 0 at padding.

        Args:
            embeddings: [n, S, width].
            parts: [n, S], a `Part` for each token.
            lengths: [n], tokens without padding, on the CPU.
        """
        read = self.normalise(embeddings) + self.parts[parts]
        packed = pack_padded_sequence(read, lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=embeddings.shape[1])
        return torch.cat([last[0], last[1]], dim=-1), padded
