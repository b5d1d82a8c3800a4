"""Delta: a low-rank update in memory. ΔW = B·A per module, always in `nn.Linear` orientation [d_out, d_in]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vllm_edit.deltas import peft
from vllm_edit.deltas.low_rank import LowRank, stack
from vllm_edit.digest import digest_tensors
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Delta", "LowRank"]


@dataclass(frozen=True)
class Delta:
    """A low-rank update of a model: ΔW = B·A for each edited module.

    Attributes:
        parts: module name in the Hugging Face model (`named_modules`) → its factors, `LowRank(B, A)` with B [d_out, r]
            and A [r, d_in].

    Example:
        >>> with delta.apply(base.model):  # the weights do not change
        ...     base.model.generate(**inputs)
    """

    parts: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        """The highest rank of all modules; 0 for the empty delta."""
        return max((part.rank for part in self.parts.values()), default=0)

    # Algebra: every method returns a new delta.

    def truncate(self, rank: int) -> tuple[Delta, float]:
        """The best approximation of a lower rank, by QR and SVD of the factors.

        Args:
            rank: maximum rank of each module.

        Returns:
            The reduced delta, and the share of Σ ‖ΔW‖² over all modules that is dropped, in [0, 1].

        Raises:
            EditError: the rank is less than 1.
        """
        reduced = {name: part.truncated(rank) for name, part in self.parts.items()}
        dropped = sum(energy for _, energy in reduced.values())
        total = sum(part.norm() ** 2 for part in self.parts.values())
        return Delta({name: part for name, (part, _) in reduced.items()}), dropped / total if total else 0.0

    @classmethod
    def concatenate(cls, deltas: Sequence[Delta]) -> Delta:
        """The exact sum of deltas. The ranks of each module add up.

        Args:
            deltas: deltas of one base; none give the empty delta.

        Raises:
            EditError: two deltas give one module different shapes.
        """
        by_module: dict[str, list[LowRank]] = {}
        for delta in deltas:
            for name, part in delta.parts.items():
                by_module.setdefault(name, []).append(part)
        clashes = [
            f"{name}: {sorted(shapes)}"
            for name, parts in by_module.items()
            if len(shapes := {p.shape for p in parts}) > 1
        ]
        if clashes:
            raise EditError(
                f"deltas to concatenate must agree on each module's shape, got {'; '.join(clashes)}; "
                "concatenate only deltas of one base model"
            )
        return cls({name: stack(parts) for name, parts in by_module.items()})

    # Use in a model.

    def apply(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which a model computes W x + b + B (A x) in every module of the delta.

        The weights do not change, and no hook remains after the context.

        Args:
            model: the Hugging Face model of the delta's base.

        Raises:
            Incompatible: the model lacks a module, or a module has another shape.
        """
        from vllm_edit.deltas.apply import applied  # imports transformers, which a server does not need

        return applied(model, self.parts)

    # PEFT files: the adapter that vLLM loads.

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The adapter's tensors as `save_peft` writes them: balanced in float64, cast last.

        Args:
            dtype: type of the tensors.

        Returns:
            PEFT's names → lora_A [r, d_in] and lora_B [d_out, r].

        Raises:
            EditError: as `save_peft`.
        """
        return peft.tensors(self.parts, dtype)

    @property
    def digest(self) -> str:
        """Digest of the float32 adapter's tensors, `Manifest.adapter`. Saving and loading a delta preserves it."""
        return digest_tensors(self.tensors())

    def save_peft(
        self,
        folder: str | Path,
        *,
        base_name: str = "",
        dtype: torch.dtype = torch.float32,
        fan_in_fan_out: bool = False,
    ) -> Path:
        """Write `adapter_config.json` and `adapter_model.safetensors`; equal deltas give equal bytes.

        Args:
            folder: the folder to write, created if missing.
            base_name: the config's `base_model_name_or_path`; informative, so it may be empty.
            dtype: the saved tensors' dtype: float64, float32, bfloat16 or float16. The cast is the last step, after all
                computation in float32 or float64.
            fan_in_fan_out: True for a base whose linear layers are Conv1D (GPT-2); only PEFT reads it.

        Returns:
            The folder.

        Raises:
            EditError: the delta has no modules, a module has rank 0, or `dtype` cannot hold the factors. Nothing is
                written.
        """
        files = peft.encode(self.parts, base_name, dtype, fan_in_fan_out)  # may raise, so before anything is written
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    @classmethod
    def load_peft(cls, folder: str | Path) -> Delta:
        """Read a LoRA adapter in PEFT's layout. Its scale is folded into B.

        Args:
            folder: the folder with `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            EditError: not an adapter folder, or an adapter that B·A cannot express; lists every problem.
        """
        return cls(peft.read(Path(folder)))
