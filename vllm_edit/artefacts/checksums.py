"""Verification of an artefact's files: its manifest, and the list of its files' digests.

    manifest.json    canonical JSON: the digest of its bytes is the digest in the patch's name
    files.json       digests of the bytes of all other files, and of this list itself

`files.json` detects every changed byte; the digests in the manifest bind the decoded contents to the name (`folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pydantic import ValidationError

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.digest import canonical, digest_bytes, intact_content, with_digest
from vllm_edit.errors import Corrupt
from vllm_edit.invalid import problems_of
from vllm_edit.names import split_name

MANIFEST = "manifest.json"
CHECKSUMS = "files.json"

Read = Callable[[str], bytes]  # bytes of one of an artefact's files, by its path within the artefact


def seal(manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the artefact's files by path: `files`, the manifest and the checksums."""
    digests = {path: digest_bytes(data) for path, data in files.items()}
    checksums = canonical(with_digest("files", digests))
    return {MANIFEST: canonical(manifest.model_dump(mode="json")), CHECKSUMS: checksums, **files}


def read_manifest(name: str, read: Read) -> Manifest:
    """Read and verify the manifest of artefact `name`.

    Raises:
        Corrupt: its bytes do not match the digest in the name.
    """
    data = read(MANIFEST)
    if digest_bytes(data) != split_name(name)[1]:
        raise damaged(name, MANIFEST)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = problems_of(error)[0]
        raise Corrupt(
            f"{name}/{MANIFEST} was written by another version of vllm-edit ({first}); compile again"
        ) from error
    if manifest.name != name:
        raise Corrupt(f"{name}/{MANIFEST} describes {manifest.name}; compile again")
    return manifest


def read_checked(name: str, path: str, read: Read) -> bytes:
    """Read and verify one file of artefact `name`.

    Raises:
        Corrupt: its bytes do not match the digest in `files.json`.
    """
    data = read(path)
    if _listed(name, read).get(path) != digest_bytes(data):
        raise damaged(name, path)
    return data


def check_files(name: str, paths: Collection[str], read: Read) -> None:
    """Raise `Corrupt` unless `files.json` lists exactly these paths, and every file matches its digest.

    Readers check decoded contents; this also detects changes that decoding ignores, such as white space.
    """
    listed = _listed(name, read)
    if set(listed) != set(paths):
        raise damaged(name, CHECKSUMS)
    for path in paths:
        if digest_bytes(read(path)) != listed[path]:
            raise damaged(name, path)


def _listed(name: str, read: Read) -> dict[str, str]:
    """`files.json`: path → digest."""
    try:
        return dict(intact_content(read(CHECKSUMS), "files"))
    except (ValueError, TypeError):  # TypeError: the content is no object
        raise damaged(name, CHECKSUMS) from None


def damaged(name: str, path: str) -> Corrupt:
    return Corrupt(f"{name}/{path} does not match its digest; compile the patch again or restore the file")
