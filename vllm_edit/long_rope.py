"""LongRoPE: position factors of which one set is for short texts and another for long ones (arXiv 2402.13753).

transformers takes the short factors for a text of at most the original number of positions. vLLM (0.32,
`rotary_embedding/phi3_long_rope_scaled_rope.py`) takes the long factors for every text if the engine's maximum length
is above that number. Edits are compiled and judged with the short factors.
"""

from __future__ import annotations

from collections.abc import Mapping

_KINDS = ("longrope", "su")  # "su": the name in older files


def short_positions(config: Mapping[str, object]) -> int | None:
    """The number of positions up to which the short factors apply; None for a model without LongRoPE.

    Args:
        config: the content of config.json.
    """
    read = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(read, Mapping):
        return None
    for part in (read, *read.values()):  # some models have parameters for each type of layer
        if isinstance(part, Mapping) and {part.get("rope_type"), part.get("type")} & set(_KINDS):
            stated = part.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            return stated if isinstance(stated, int) else None
    return None


def length_problem(config: Mapping[str, object], length: int | None) -> str | None:
    """The reason why an engine of maximum length `length` would serve another model than was edited; None without one.

    Args:
        config: the content of config.json.
        length: the engine's maximum length in tokens; None if it is not known yet.
    """
    most = short_positions(config)
    if most is None or length is None or length <= most:
        return None
    return (
        f"--max-model-len is {length}, and above {most} vLLM reads every text with the position factors of long texts; "
        f"the site was fixed with those of short texts: use --max-model-len {most}"
    )
