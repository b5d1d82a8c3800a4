"""Base: the model for which edits are compiled. Compiling does not change it; `unchanged` asserts that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vllm_edit.artefacts.site import Fingerprint
from vllm_edit.digest import digest_json, digest_tensors
from vllm_edit.errors import EditError
from vllm_edit.models.causal_lm import CausalLM, causal_lm
from vllm_edit.models.hf_folder import HfFolder
from vllm_edit.models.hub import downloaded
from vllm_edit.models.import_checks import check_cache, check_open_end, check_round_trip, check_rows, check_turn
from vllm_edit.models.layout import Layout, find_layout
from vllm_edit.shipped import weights_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHIPPED = "atlas"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Base:
    """A causal language model in eval mode, with its tokenizer. Compiling never changes it.

    Attributes:
        model: the Hugging Face model.
        tokenizer: its fast tokenizer.
        layout: the names of its blocks and MLP matrices.
        fingerprint: digests of its config, weights, tokenizer and chat template.
        name: the name that the user gave.
        folder: the folder of its files; None for a model that was built in memory.

    Example:
        >>> base = Base.load("atlas")
        >>> store_fits = not Store.open().base().departures(base.fingerprint)
    """

    model: CausalLM
    tokenizer: PreTrainedTokenizerFast
    layout: Layout
    fingerprint: Fingerprint
    name: str
    folder: Path | None = None
    _seen: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(
        cls, name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Base:
        """Load a model and its tokenizer.

        Args:
            name: "atlas" (shipped with the package), a folder in Hugging Face layout, or the id of a model on the hub.
            device: the device of the weights; None for the GPU if there is one.
            dtype: type of the weights. Factors are computed in float32; another type loses precision (upcasting
                half-precision weights is exact).

        Raises:
            EditError: there is no such model or no such device, or the model cannot be loaded or edited.
        """
        place = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = _folder_of(name)
        source = HfFolder(str(name), folder)
        source.files.check_whole()
        fingerprint = Fingerprint.of_folder(folder)
        config = source.config()
        source.files.check_served()
        read = source.read(config, dtype)
        model, tokenizer = read.model, read.tokenizer
        # Silence the tokenizer's warning about long texts: `check_edits` raises an error for them.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        model.to(place)
        return cls._checked(model, tokenizer, fingerprint, str(name), folder)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str = "memory",
        folder: Path | None = None,
    ) -> Base:
        """A base from a model and a tokenizer in memory.

        Args:
            model: a causal language model of transformers; it is put into eval mode.
            tokenizer: its fast tokenizer.
            name: the base's name in messages.
            folder: the folder of the model's files. Without it, the fingerprint is computed from memory; it differs
                from the fingerprint of saved files.

        Raises:
            EditError: the tokenizer is slow, or the model cannot be edited.
        """
        fingerprint = Fingerprint.of_folder(folder) if folder else _fingerprint_in_memory(model, tokenizer)
        return cls._checked(model, tokenizer, fingerprint, name, folder)

    @classmethod
    def _checked(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        fingerprint: Fingerprint,
        name: str,
        folder: Path | None,
    ) -> Base:
        if not getattr(tokenizer, "is_fast", False):
            raise EditError(f"{name} has a slow tokenizer; expected a fast one, which knows each token's characters")
        try:
            check_round_trip(tokenizer)
            check_open_end(tokenizer)
            check_turn(tokenizer)
            layout = find_layout(model)
            checked = causal_lm(model)
            check_cache(checked)
            check_rows(tokenizer, len(checked.get_input_embeddings().weight))
        except EditError as error:
            raise EditError(f"{name} cannot be edited: {error}") from error
        return cls(checked.eval(), tokenizer, layout, fingerprint, name, folder)

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def state_digest(self) -> str:
        """Digest of all parameters and buffers (bytes), `requires_grad` flags, modes and numbers of hooks."""
        return digest_json(_state(self.model, _bytes))


@contextmanager
def unchanged(base: Base, *, exact: bool = True) -> Iterator[None]:
    """Assert on exit, even after an exception, that the model is bit-identical to its state on entry.

    It compares parameters and buffers, `requires_grad`, train/eval modes, and numbers of hooks. With `exact`, tensors
    are hashed on the CPU (about 1 s per GB) or summed on a GPU (see `bits`). This is done on exit; the first time, also
    on entry (later entries use the state of the last exit). Without `exact`, tensors are compared by identity and by
    torch's version counter, which costs nothing and detects every in-place operation except writes through `.data`.

    Raises:
        RuntimeError: the model changed; the message lists the changes. This is a bug in the code within the context.
    """
    content = bits if exact else _identity
    known = base._seen.pop(_label(base), None) if exact else None
    before = known or _state(base.model, content)
    try:
        yield
    finally:
        after = _state(base.model, content)
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        if changed:
            raise RuntimeError(f"compiling changed the base model {base.name}: {', '.join(sorted(changed)[:5])}")
        if exact:
            base._seen[_label(base)] = after


def bits(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bytes on the CPU; on other devices, of its `bit_sums`, to avoid a large transfer."""
    return _bytes(tensor) if tensor.device.type == "cpu" else digest_tensors(bit_sums(tensor))


def bit_sums(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums of a tensor's bits over its rows and over its columns, in words of four bytes, modulo 2³².

    They detect a changed element, row or column, and a transposition, but not changes that cancel in every row and
    every column.
    """
    rows = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1) if tensor.numel() else tensor.new_zeros(1, 0)
    octets = rows.contiguous().view(torch.uint8)
    words = octets if octets.shape[1] % 4 else octets.view(torch.int32)
    return {"rows": words.sum(1, dtype=torch.int32), "columns": words.sum(0, dtype=torch.int32)}


def _bytes(tensor: torch.Tensor) -> str:
    return digest_tensors({"bytes": tensor})


def _identity(tensor: torch.Tensor) -> str:
    return f"{tensor.data_ptr()}:{tensor._version}"


def _label(base: Base) -> str:
    """Cache key for the state of `base`; it changes with every in-place operation on a tensor."""
    return digest_json(_state(base.model, _identity))


def _state(model: torch.nn.Module, content: Callable[[torch.Tensor], str]) -> dict[str, str]:
    """The state that must not change, as label → value. content: a tensor → a string that identifies its elements."""
    state: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"tensor {name}"] = f"{content(tensor)}:{tensor.dtype}:{tuple(tensor.shape)}"
        state[f"requires_grad of {name}"] = str(tensor.requires_grad)
    for name, module in model.named_modules():
        state[f"mode of {name or 'model'}"] = str(module.training)
        state[f"hooks of {name or 'model'}"] = str([len(getattr(module, kind)) for kind in _HOOKS])
    return state


def _usable(device: str | torch.device) -> torch.device:
    """The device, if this machine has it. A small tensor tells before the weights are read.

    Raises:
        EditError: it has not.
    """
    try:
        tried = torch.zeros(1, device=device)
        tried.item()  # the device "meta" holds no values
        return tried.device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by its build
        why = str(error).partition("\n")[0].rstrip(".")
        raise EditError(
            f"expected a device of this machine, such as cpu or cuda, got {str(device)!r} ({why}); name another"
        ) from error


def _folder_of(name: str | Path) -> Path:
    """The local folder of a model, downloaded from the hub if necessary."""
    if name == SHIPPED:
        return weights_folder()
    if Path(name).is_dir():
        return Path(name)
    expected = f"expected {SHIPPED!r}, a folder in Hugging Face layout, or the id of a model on the hub"
    return downloaded(str(name), expected)


def _fingerprint_in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Fingerprint:
    config = {key: str(value) for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
    core = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    core.update(padding=None, truncation=None)  # set by the latest call, not part of the tokenizer
    return Fingerprint(
        config=digest_json(config),
        weights=digest_tensors(dict(model.state_dict())),
        tokenizer=digest_json(core),
        chat_template=digest_json(tokenizer.chat_template or ""),
    )
