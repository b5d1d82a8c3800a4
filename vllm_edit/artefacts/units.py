"""The units of a patch with scope subject: each subject's compiled patch in one file of a few tens of KB.

units/<digest>.safetensors     the adapter's B and A and the factors, with the unit's manifest in the header

A server thus reads only the units that a request needs. The patch's manifest holds each unit's name; the name's digest
verifies the unit's manifest, whose digests verify its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from vllm_edit.artefacts.checksums import Read, damaged
from vllm_edit.artefacts.compiled import CompiledPatch, Factors
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.digest import canonical, digest_bytes, digest_tensors
from vllm_edit.names import split_name

_MANIFEST = "manifest"
_LENGTH_BYTES = 8  # safetensors: the header's length, little-endian, then the header as JSON


def members_inside(manifest: Manifest) -> Sequence[str]:
    """Return the names of the units stored inside the patch. A composition's members are separate patches."""
    return manifest.members if manifest.scope == "subject" else ()


def unit_path(member: str) -> str:
    """The unit's file within its patch."""
    return f"units/{split_name(member)[1]}.safetensors"


def pack_unit(unit: CompiledPatch) -> bytes:
    """Encode the unit as a file. The encoding is deterministic."""
    tensors: dict[str, torch.Tensor] = {}
    for module, part in unit.delta.parts.items():
        tensors[f"B.{module}"], tensors[f"A.{module}"] = part.cast(torch.float32)
    if unit.factors is not None:
        tensors |= {f"factors.{name}": tensor for name, tensor in unit.factors.tensors().items()}
    manifest = canonical(unit.manifest.model_dump(mode="json")).decode()
    data: bytes = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata={_MANIFEST: manifest}
    )
    return data


def read_unit(patch: str, member: str, read: Read) -> CompiledPatch:
    """Read and verify the unit `member` of a patch.

    Raises:
        Corrupt: the file is missing or does not match the unit's name.
    """
    path = unit_path(member)
    data = read(path)
    try:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        text = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"][_MANIFEST].encode()
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise damaged(patch, path) from error
    if digest_bytes(text) != split_name(member)[1]:
        raise damaged(patch, path)
    try:
        manifest = Manifest.model_validate_json(text)
        parts = {module: LowRank(B=tensors[f"B.{module}"], A=tensors[f"A.{module}"]) for module in manifest.modules}
        factors = None
        if manifest.factors is not None:
            factors = Factors(**{name: tensors[f"factors.{name}"] for name in ("keys", "whitened", "residuals")})
    except (ValidationError, KeyError) as error:
        raise damaged(patch, path) from error
    delta = Delta(parts)
    found = digest_tensors(factors.tensors()) if factors else None
    if manifest.name != member or delta.digest != manifest.adapter or found != manifest.factors:
        raise damaged(patch, path)
    return CompiledPatch(manifest, delta, factors)
