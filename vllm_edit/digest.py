"""Content digests: the identity of everything that is stored.

A digest is the first 128 bits of a SHA-256, as 32 hexadecimal characters. Structured values are hashed in a canonical
JSON form (sorted keys, no insignificant white space), tensors by name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DIGEST_LENGTH = 32


def digest_bytes(*parts: bytes) -> str:
    """Digest of length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()[:DIGEST_LENGTH]


def digest_json(value: object) -> str:
    """Digest of a JSON-able value in canonical form."""
    return digest_bytes(canonical(value))


def canonical(value: object) -> bytes:
    """The JSON form that `digest_json` hashes; a file that holds it has the digest of its content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def with_digest(key: str, content: object) -> dict[str, object]:
    """The JSON object of a file that can be checked by itself: the content under `key`, and its digest."""
    return {"digest": digest_json(content), key: content}


def intact_content(data: bytes, key: str) -> Any:
    """The content under `key` of a file that holds `with_digest(key, …)` as JSON.

    Raises:
        ValueError: the file has another form, or the content does not match the digest; the message says which.
    """
    try:
        stored = json.loads(data)
        content, expected = stored[key], stored["digest"]
        matches = digest_json(content) == expected
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot be read ({error!r})") from error
    if not matches:
        raise ValueError("does not match its digest")
    return content


def digest_file(path: Path) -> str:
    """Digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_LENGTH]


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of named tensors: name, dtype, shape and bytes, in name order."""
    import torch

    parts: list[bytes] = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest_bytes(*parts)
