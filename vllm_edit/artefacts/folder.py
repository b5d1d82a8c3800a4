"""Encode a compiled patch as files, and decode it with every digest checked.

manifest.json, files.json      see `checksums`
factors.safetensors            Manifest.factors is the digest of its tensors (absent for methods without factors)
demonstrations.json            canonical JSON: Manifest.demonstrations is the digest of its bytes
adapter/…                      the PEFT folder; Manifest.adapter is the digest of its tensors
units/…                        see `units`; replaces adapter and factors in a patch with scope subject
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError

from vllm_edit.artefacts.checksums import Read, check_files, damaged, read_checked, seal
from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration, Factors
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.units import members_inside, pack_unit, read_unit, unit_path
from vllm_edit.deltas import peft
from vllm_edit.deltas.delta import Delta
from vllm_edit.digest import canonical, digest_bytes, digest_json, digest_tensors
from vllm_edit.errors import Corrupt, EditError

FACTORS = "factors.safetensors"
DEMONSTRATIONS = "demonstrations.json"
ADAPTER = "adapter"

_DEMONSTRATIONS = TypeAdapter(tuple[Demonstration, ...])


def factors_digest(factors: Factors | None) -> str | None:
    """`Manifest.factors`."""
    return None if factors is None else digest_tensors(factors.tensors())


def demonstrations_digest(demonstrations: Sequence[Demonstration]) -> str | None:
    """`Manifest.demonstrations`; None when there are none."""
    return digest_json(_DEMONSTRATIONS.dump_python(tuple(demonstrations), mode="json")) if demonstrations else None


def pack(compiled: CompiledPatch) -> dict[str, bytes]:
    """Return the artefact's files by relative path. The encoding is deterministic.

    Raises:
        EditError: the manifest's digests do not match the contents.
    """
    manifest = compiled.manifest
    scoped = manifest.scope == "subject"
    stated = {"adapter": manifest.adapter, "factors": manifest.factors, "demonstrations": manifest.demonstrations}
    actual = {
        "adapter": None if scoped else compiled.delta.digest,
        "factors": factors_digest(compiled.factors),
        "demonstrations": demonstrations_digest(compiled.demonstrations),
    }
    if scoped:
        stated["units"], actual["units"] = str(manifest.members), str(tuple(unit.name for unit in compiled.units))
    wrong = [f"{key} {stated[key]}, its content has {actual[key]}" for key in stated if stated[key] != actual[key]]
    if wrong:
        raise EditError(f"the manifest of {manifest.patch!r} does not describe its contents: {'; '.join(wrong)}")
    files = {unit_path(unit.name): pack_unit(unit) for unit in compiled.units}
    if not scoped:
        files |= {f"{ADAPTER}/{name}": data for name, data in encode_adapter(compiled).items()}
    if compiled.factors is not None:
        files[FACTORS] = pack_tensors(compiled.factors.tensors())
    if compiled.demonstrations:
        files[DEMONSTRATIONS] = canonical(_DEMONSTRATIONS.dump_python(compiled.demonstrations, mode="json"))
    return seal(manifest, files)


def unpack(manifest: Manifest, read: Read) -> CompiledPatch:
    """Read and verify the compiled patch, without its report.

    Raises:
        Corrupt: a file does not match its digest; the message names the file.
    """
    return CompiledPatch(
        manifest=manifest,
        delta=read_delta(manifest, read),
        factors=read_factors(manifest, read),
        demonstrations=read_demonstrations(manifest, read),
        units=tuple(read_unit(manifest.name, member, read) for member in members_inside(manifest)),
    )


def check(manifest: Manifest, read: Read) -> None:
    """Verify every byte of the artefact; raise `Corrupt` as `unpack` does."""
    unpack(manifest, read)
    paths = [unit_path(member) for member in members_inside(manifest)]
    if manifest.adapter is not None:
        paths += [f"{ADAPTER}/{name}" for name in (peft.CONFIG_FILE, peft.TENSORS_FILE)]
    stated = {FACTORS: manifest.factors, DEMONSTRATIONS: manifest.demonstrations}
    check_files(manifest.name, [*paths, *(path for path, digest in stated.items() if digest is not None)], read)


def encode_adapter(compiled: CompiledPatch) -> dict[str, bytes]:
    """Return the PEFT folder's files by file name. The encoding is deterministic."""
    # Write the base's digest instead of its name: the name that a user chose is not part of the patch's identity.
    return peft.encode(compiled.delta.parts, base_name=compiled.manifest.base, dtype=torch.float32)


def read_delta(manifest: Manifest, read: Read) -> Delta:
    """Read the adapter as a delta; the delta is empty with scope subject."""
    if manifest.adapter is None:
        return Delta({})
    return Delta(peft.decode(read_adapter(manifest, read), Path(manifest.name) / ADAPTER))


def read_adapter(manifest: Manifest, read: Read) -> dict[str, bytes]:
    """Read and verify the PEFT folder's files, by file name.

    Raises:
        EditError: a patch with scope subject has no adapter of its own.
    """
    if manifest.adapter is None:
        raise EditError(
            f"{manifest.name} has scope subject and thus no single adapter: each of its {len(manifest.members)} "
            "subjects has its own; serve it, or compile its edits with scope all"
        )
    files = {}
    for name in (peft.CONFIG_FILE, peft.TENSORS_FILE):
        files[name] = read_checked(manifest.name, f"{ADAPTER}/{name}", read)
    unpack_tensors(f"{manifest.name}/{ADAPTER}/{peft.TENSORS_FILE}", files[peft.TENSORS_FILE], manifest.adapter)
    return files


def read_factors(manifest: Manifest, read: Read) -> Factors | None:
    if manifest.factors is None:
        return None
    data = read_checked(manifest.name, FACTORS, read)
    return Factors(**unpack_tensors(f"{manifest.name}/{FACTORS}", data, manifest.factors))


def read_demonstrations(manifest: Manifest, read: Read) -> tuple[Demonstration, ...]:
    if manifest.demonstrations is None:
        return ()
    data = read_checked(manifest.name, DEMONSTRATIONS, read)
    if digest_bytes(data) != manifest.demonstrations:
        raise damaged(manifest.name, DEMONSTRATIONS)
    return _DEMONSTRATIONS.validate_json(data)


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    data: bytes = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    return data


def unpack_tensors(where: str, data: bytes, digest: str) -> dict[str, torch.Tensor]:
    """Decode the safetensors file `where`, and check the tensors against the digest of their content."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise Corrupt(f"{where} is not a safetensors file ({error}); restore it, or compile again") from error
    if digest_tensors(tensors) != digest:
        raise Corrupt(f"{where} does not hold the tensors with digest {digest}; restore it, or compile again")
    return tensors
