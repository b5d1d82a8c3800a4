"""`vllm-edit sign`: sign compiled patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption, WhoOption
from vllm_edit.cli.output import print_json, print_line

if TYPE_CHECKING:
    from vllm_edit.artefacts.signatures import SigningKey
    from vllm_edit.store.store import Store


def sign(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="capital, capital@4f1c, or the full name.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key, as `signer create` writes it.")],
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Sign compiled patches, after every byte of their files is verified."""
    from vllm_edit.artefacts.signatures import SigningKey
    from vllm_edit.store.store import Store

    opened, signing = Store.open(store), SigningKey.load(key)
    trusted = is_trusted(opened, signing)
    signed = [opened.resolve(name) for name in names]
    for name in signed:
        opened.sign(name, signing, by=who)
    if json:
        print_json({"key": signing.id, "trusted": trusted, "signed": signed})
        return
    for name in signed:
        print_line(f"{name} signed by {signing.id}")
    if not trusted:
        print_line(not_trusted(signing))


def is_trusted(store: Store, key: SigningKey) -> bool:
    """True if the store trusts the key, so that its signatures count.

    Raises:
        EditError: the key is revoked or has ended.
    """
    from vllm_edit.store.signers import read_signers

    return read_signers(store.files).trusts(key.id)


def not_trusted(key: SigningKey) -> str:
    """Return a note: signatures of the key do not count before the store trusts it."""
    return f"note: no list of keys trusts {key.id} yet: vllm-edit signer trust {key.public} --name …"
