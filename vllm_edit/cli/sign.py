"""`vllm-edit sign`: sign compiled patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption, WhoOption
from vllm_edit.cli.output import print_json, print_line


def sign(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="capital, capital@4f1c, or the full name.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key, as `signer create` writes it.")],
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Sign compiled patches, after every byte of their files is verified."""
    from vllm_edit.artefacts.signatures import SigningKey
    from vllm_edit.store.signers import read_signers
    from vllm_edit.store.store import Store

    opened, signing = Store.open(store), SigningKey.load(key)
    signed = [opened.resolve(name) for name in names]
    for name in signed:
        opened.sign(name, signing, by=who)
    trusted = any(signer.id == signing.id for signer in read_signers(opened.files).keys)
    if json:
        print_json({"key": signing.id, "trusted": trusted, "signed": signed})
        return
    for name in signed:
        print_line(f"{name} signed by {signing.id}")
    if not trusted:
        print_line(f"note: no list of keys trusts {signing.id} yet: vllm-edit signer trust {signing.public} --name …")
