"""PEFT files: a delta as the two files that `peft.PeftModel` and vLLM load, and back.

    adapter_config.json          rank, alpha and target modules
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight [r, d_in], ….lora_B.weight [d_out, r]

`peft.LoraConfig` writes and reads the config. Alpha equals the rank everywhere, so LoRA's scale alpha/r is 1 and
ΔW = B·A. The file holds only the keys that we set, so that it does not change with PEFT's version: PEFT's other fields
have their defaults, and vLLM drops them. A and B have `nn.Linear` orientation for Conv1D too.

PEFT is imported where it is used: the server, which imports this module, needs it only to compose adapters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from vllm_edit.deltas.low_rank import LowRank, check_dtype
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# Features with which an adapter is not W + s·B·A; any other value than these is refused.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False,),
    "use_bdlora": (None, False, {}),
}
# Initialisations after which PEFT changes the base weights when it loads the adapter.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


def tensors(parts: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The adapter's tensors by PEFT name, balanced in float64 and cast last, in name order.

    Raises:
        EditError: a dtype that is not `check_dtype`'s, nothing to write, a module of rank 0, or a value that `dtype`
            cannot hold.
    """
    check_dtype(dtype)
    named: dict[str, torch.Tensor] = {}
    problems = [] if parts else ["it has no modules"]
    problems += [f"{module}: rank 0, leave the module out" for module in sorted(parts) if parts[module].rank == 0]
    for module in sorted(parts):
        try:
            B, A = parts[module].cast(dtype)
        except EditError as error:
            problems.append(f"{module}: {error}")
            continue
        named[f"base_model.model.{module}.lora_A.weight"] = A
        named[f"base_model.model.{module}.lora_B.weight"] = B
    if problems:
        raise EditError(f"this delta cannot be written as an adapter: {'; '.join(problems)}")
    return named


def encode(
    parts: Mapping[str, LowRank], base_name: str, dtype: torch.dtype, fan_in_fan_out: bool = False
) -> dict[str, bytes]:
    """Both files' bytes by file name; equal parts give equal bytes."""
    named = tensors(parts, dtype)
    config = json.dumps(_config(parts, base_name, fan_in_fan_out), indent=2, sort_keys=True, ensure_ascii=False)
    return {CONFIG_FILE: f"{config}\n".encode(), TENSORS_FILE: safetensors.torch.save(named, metadata={"format": "pt"})}


def read(folder: Path) -> dict[str, LowRank]:
    """Read an adapter folder's files and `decode` them."""
    try:
        # Read, not memory-mapped: a delta in memory must not change when its file does.
        files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, TENSORS_FILE)}
    except OSError as error:
        raise _no_folder(folder, error) from error
    return decode(files, folder)


def decode(files: Mapping[str, bytes], folder: Path) -> dict[str, LowRank]:
    """Decode both files to module → `LowRank`.

    Factors are float32, or float64 where a scale ≠ 1 was folded into B. Tensor names, not `target_modules`, determine
    the adapted modules, as in vLLM.

    Args:
        files: both files' bytes by file name.
        folder: their folder, for messages.

    Raises:
        EditError: the files are no plain LoRA adapter; one line per problem.
    """
    try:
        config = json.loads(files[CONFIG_FILE].decode())
        stored = safetensors.torch.load(files[TENSORS_FILE])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise _no_folder(folder, error) from error
    if not isinstance(config, dict):
        raise EditError(f"{folder / CONFIG_FILE} holds a {type(config).__name__}, expected a JSON object")
    problems = _config_problems(config)
    lora = _lora_config(config, problems)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(stored):
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            problems.append(f"tensor {name}: expected base_model.model.<module>.lora_A.weight or .lora_B.weight")
        else:
            factors.setdefault(match["module"], {})[match["factor"]] = stored[name]
    parts: dict[str, LowRank] = {}
    for module, found in factors.items() if lora is not None else ():
        try:
            parts[module] = _part(found, *_rank_and_scale(lora, module))
        except EditError as error:
            problems.append(f"{module}: {error}")
    if not stored:
        problems.append(f"{TENSORS_FILE} holds no tensors")
    if problems:
        raise EditError("\n".join(f"{folder}: {problem}" for problem in problems))
    return parts


def _no_folder(folder: Path, error: Exception) -> EditError:
    return EditError(
        f"{folder} is not an adapter folder: expected {CONFIG_FILE} and {TENSORS_FILE}, got {error!r}; "
        "save the adapter with PEFT's save_pretrained"
    )


def _config(parts: Mapping[str, LowRank], base_name: str, fan_in_fan_out: bool) -> dict[str, Any]:
    """`adapter_config.json`: the highest rank as default, an anchored pattern for each module of another rank."""
    from peft import LoraConfig

    rank = max(part.rank for part in parts.values())
    pattern = {f"^{re.escape(name)}": part.rank for name, part in sorted(parts.items()) if part.rank != rank}
    given = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(parts),
    }
    config = LoraConfig(**given).to_dict()
    written = {key: config[key] for key in ("peft_type", *given)}
    return written | {"target_modules": sorted(written["target_modules"])}  # PEFT holds a set


def _lora_config(config: Mapping[str, Any], problems: list[str]) -> LoraConfig | None:
    """PEFT's reading of a config, without the keys that it does not know; None, with a problem, if it refuses it."""
    from peft import LoraConfig

    known = {field.name for field in fields(LoraConfig) if field.init}
    try:
        return LoraConfig(**{key: value for key, value in config.items() if key in known})
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        problems.append(f"{CONFIG_FILE} is refused by PEFT: {' '.join(str(error).split())}")
        return None


def _config_problems(config: dict[str, Any]) -> list[str]:
    """One line per feature of the config that ΔW = s·B·A cannot express."""
    problems = [
        f"{key} is {config[key]!r}, expected {plain[0]!r}: only plain LoRA is served"
        for key, plain in _PLAIN.items()
        if key in config and config[key] not in plain
    ]
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        problems.append(
            f"init_lora_weights is {init!r}, which changes the base weights; convert to plain LoRA with PEFT"
        )
    problems += [
        f"{key} is {config.get(key)!r}, expected a positive number"
        for key in ("r", "lora_alpha")  # PEFT has defaults for both, vLLM has none
        if not isinstance(config.get(key), int | float) or config[key] <= 0
    ]
    return problems


def _rank_and_scale(config: LoraConfig, module: str) -> tuple[int, float]:
    """Rank and scale that PEFT gives a module: alpha/r, or alpha/√r with rsLoRA (arXiv 2312.03732)."""
    rank = _of_pattern(config.rank_pattern, module, config.r)
    alpha = _of_pattern(config.alpha_pattern, module, config.lora_alpha)
    if not isinstance(rank, int) or rank <= 0 or not isinstance(alpha, int | float):
        raise EditError(f"rank {rank!r} and alpha {alpha!r}, expected a positive rank and a number")
    return rank, alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _of_pattern(pattern: Any, module: str, default: Any) -> Any:
    """The value of the first key of `pattern` that matches a suffix of the module's name at a dot."""
    from peft.utils.other import get_pattern_key

    if not isinstance(pattern or {}, dict):
        raise EditError(f"pattern {pattern!r}, expected an object of modules and numbers")
    try:
        return (pattern or {}).get(get_pattern_key([*(pattern or {})], module), default)
    except re.error as error:
        raise EditError(f"a pattern in {', '.join(pattern)} is not a regular expression: {error}") from error


def _part(found: Mapping[str, torch.Tensor], rank: int, scale: float) -> LowRank:
    """`LowRank` of a module's stored factors A [r, d_in] and B [d_out, r]; ΔW = scale·B·A."""
    if missing := {"A", "B"} - found.keys():
        raise EditError(f"lora_{missing.pop()}.weight is missing")
    A, B = found["A"], found["B"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise EditError(
            f"expected lora_A [{rank}, d_in] and lora_B [d_out, {rank}], got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise EditError("a factor holds infinite or NaN values")
    dtype = torch.float32 if scale == 1 else torch.float64
    return LowRank(B.to(dtype) * scale, A.to(dtype))
