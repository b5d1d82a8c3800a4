"""Read and write the site and its tensors as files of a store; digests are checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import ValidationError

from vllm_edit.artefacts.site import Site, TensorKind
from vllm_edit.digest import intact_content, with_digest
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.files import Files

if TYPE_CHECKING:
    import torch

SITE = "site.json"
_FOLDERS: Mapping[TensorKind, str] = MappingProxyType(
    {"second moment": "moments", "network": "networks", "gradient statistics": "statistics"}
)


def write_site(files: Files, site: Site) -> None:
    text = json.dumps(with_digest("site", site.model_dump(mode="json")), indent=2, ensure_ascii=False)
    files.write(SITE, text.encode())


def read_site(files: Files) -> Site:
    """Read the site.

    Raises:
        Corrupt: the file does not match the digest in it.
    """
    try:
        content = intact_content(files.read(SITE), "site")
    except ValueError as error:
        raise Corrupt(f"{SITE} {error}; restore it from a backup") from error
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise Corrupt(f"{SITE} cannot be read ({error!r}); restore it from a backup") from error


def check_tensors(site: Site, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `EditError` unless the tensors have the digest that the site names."""
    from vllm_edit.digest import digest_tensors

    if digest_tensors(tensors) != site.tensors_digest:
        raise EditError(
            f"expected the {site.tensor_kind} with digest {site.tensors_digest}, which the site names, got "
            f"{digest_tensors(tensors)}"
        )


def write_tensors(files: Files, site: Site, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the site's second moment, network or gradient statistics."""
    from vllm_edit.artefacts.folder import pack_tensors

    files.write(_path(site), pack_tensors(tensors))


def read_tensors(files: Files, site: Site) -> dict[str, torch.Tensor]:
    """Read the site's second moment, network or gradient statistics.

    Raises:
        Corrupt: the file is missing, or does not match the digest that the site names.
    """
    from vllm_edit.artefacts.folder import unpack_tensors

    path = _path(site)
    try:
        return unpack_tensors(path, files.read(path), site.tensors_digest)
    except FileNotFoundError:
        raise Corrupt(f"{path} is missing; restore it from a backup") from None


def _path(site: Site) -> str:
    return f"{_FOLDERS[site.tensor_kind]}/{site.tensors_digest}.safetensors"
