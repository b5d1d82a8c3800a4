"""Signatures of stored patches: one file for each key, beside the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from vllm_edit.artefacts.checksums import CHECKSUMS, MANIFEST
from vllm_edit.artefacts.signatures import Signature, SigningKey
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable, Unsigned
from vllm_edit.files import Files
from vllm_edit.names import check_name, short
from vllm_edit.registry.registry import Registry
from vllm_edit.store.signers import Signers, read_signers


def sign(files: Files, registry: Registry, name: str, key: SigningKey, by: str = "") -> Signature:
    """Sign a stored patch, with a row in the audit; a signature of the same key is replaced.

    The file is written after the row is committed, so that no signature counts without a row. If the process dies in
    between, the same call signs the patch, and `lost` reports it until then.

    Args:
        files: the store's files.
        registry: the store's registry.
        name: the patch's full name. Check the patch before: the signature says that its files are right.
        key: the key.
        by: who signs, for the audit.

    Raises:
        Unavailable: the registry cannot be used, and nothing is changed; or the file cannot be written, and the message
            says that the audit has the signature already.
    """
    with registry.changes.make("patch.sign", by=by) as change:
        made = key.sign(name, sealed(files, name))
        change.record(None, {"name": name, **made.model_dump(mode="json")})
    try:
        put(files, name, made)
    except Unavailable as error:
        raise Unavailable(f"{error}; the audit has the signature already and the patch does not: sign again") from error
    return made


def put(files: Files, name: str, signature: Signature) -> None:
    """Write a patch's signature; one of the same key is replaced."""
    files.write(f"{_folder(name)}/{signature.key}.json", signature.model_dump_json(indent=1).encode())


def lost(files: Files, registry: Registry, stored: Iterable[str]) -> Iterator[str]:
    """Yield the signatures of trusted keys that the audit has and the patches `stored` do not, one line each.

    A signature of a key that cannot sign again is not reported: nothing could be done about it.

    Raises:
        Corrupt: the list of keys cannot be read.
    """
    signers, now = read_signers(files), datetime.now(UTC)
    able = {signer.id for signer in signers.keys if not signer.closed(now)}
    names, made = set(stored), set[tuple[str, str]]()
    for row in registry.audit(what="patch.sign"):
        match row.as_record().new:
            case {"name": str(name), "key": str(key)} if name in names and key in able:
                made.add((name, key))
    for name, key in sorted(made):
        if not files.exists(f"{_folder(name)}/{key}.json"):
            yield (
                f"{name} has lost the signature of {key} that the audit has; sign it again: vllm-edit sign "
                f"{short(name)} --key FILE"
            )


def signatures_of(files: Files, name: str) -> list[Signature]:
    """Return the signatures of a patch, valid or not.

    Raises:
        Corrupt: a file holds no signature.
    """
    found = []
    for path in files.glob(f"{_folder(name)}/*.json"):
        try:
            found.append(Signature.model_validate_json(files.read(path)))
        except ValidationError as error:
            raise Corrupt(f"{path} holds no signature; remove it, or sign again") from error
    return found


def check_signed(files: Files, name: str) -> Mapping[str, bytes]:
    """Raise if the store requires a signature and the patch has no valid one.

    Returns:
        The signed files, by path, to be used in place of a second read; empty if the store requires no signature.

    Raises:
        Unsigned: the message has the reason for each signature.
        NotFound: there is no such patch.
        Corrupt: a file holds no signature, or the list of keys cannot be read.
    """
    signers = read_signers(files)
    if not signers.required:
        return {}
    signed = sealed(files, name)
    signers.check(name, signed, signatures_of(files, name))
    return signed


def _folder(name: str) -> str:
    return f"signatures/{check_name(name)}"


def refuse_unsigned(files: Files, names: Iterable[str], signers: Signers) -> None:
    """Raise if one of the patches has no signature that counts, so that nothing served is refused by surprise.

    Args:
        files: the store's files.
        names: full names of patches.
        signers: the list of keys that decides.

    Raises:
        EditError: one line with all names.
    """
    lacking = []
    for name in sorted(names):
        try:
            signers.check(name, sealed(files, name), signatures_of(files, name))
        except Unsigned:
            lacking.append(short(name))
    if lacking:
        raise EditError(
            f"{', '.join(lacking)}: served, and without a signature of a trusted key; sign first: vllm-edit sign "
            f"{' '.join(lacking)} --key FILE"
        )


def sealed(files: Files, name: str) -> Mapping[str, bytes]:
    """The files that a signature covers, by path."""
    folder = f"patches/{check_name(name)}"
    try:
        return {path: files.read(f"{folder}/{path}") for path in (MANIFEST, CHECKSUMS)}
    except FileNotFoundError:
        if files.exists(f"{folder}/{MANIFEST}"):
            raise Corrupt(f"{name}/{CHECKSUMS} is missing; compile the patch again or restore the file") from None
        raise NotFound(f"no compiled patch {name}") from None
