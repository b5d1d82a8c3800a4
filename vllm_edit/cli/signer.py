"""`vllm-edit signer`: the keys whose signatures a store accepts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import JsonOption, StoreOption, UntilOption, WhoOption, WhyOption
from vllm_edit.cli.output import print_json, print_line, print_table, when

if TYPE_CHECKING:
    from vllm_edit.json_value import JSONObject
    from vllm_edit.store.signers import Signer, Signers

app = group("Keys that sign compiled patches, and whether a store requires signatures.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id, or its beginning, as in `list`.")]


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the private key.")],
    json: JsonOption = False,
) -> None:
    """Make a key. The private key stays in the file; `trust` takes the public key that is printed."""
    from vllm_edit.artefacts.signatures import SigningKey

    key = SigningKey.create(file)
    shown = {"id": key.id, "public": key.public, "file": str(file)}
    print_json(shown) if json else print_line(f"key {key.id} in {file}; public key: {key.public}")


@app.command()
def trust(
    public: Annotated[str, typer.Argument(metavar="PUBLIC", help="The public key, as `create` prints it.")],
    name: Annotated[str, typer.Option("--name", help="Whose key it is.")],
    until: UntilOption = None,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Accept the signatures of a key."""
    _change("signer.trust", store, lambda signers: signers.trusting(public, name, until), why, who, json)


@app.command()
def end(
    key: IdArgument,
    until: UntilOption = None,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """End the use of a key, by default now. Its signatures from before stay valid."""
    from datetime import UTC

    _change("signer.end", store, lambda signers: signers.ending(key, until or datetime.now(UTC)), why, who, json)


@app.command()
def revoke(
    key: IdArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke a key permanently, for example because it leaked. All its signatures are invalid from then on."""
    _change("signer.revoke", store, lambda signers: signers.revoking(key, why), why, who, json)


@app.command()
def require(
    off: Annotated[bool, typer.Option("--off", help="Accept unsigned patches again.")] = False,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Refuse to load, publish and serve patches without a valid signature. All patches in use must have one."""
    from vllm_edit.store.signing import refuse_unsigned
    from vllm_edit.store.store import Store

    opened = Store.open(store)

    def required(signers: Signers) -> Signers:
        if off:
            return signers.model_copy(update={"required": False})
        wanted = signers.requiring()
        refuse_unsigned(opened.files, opened.registry.published(), signers)
        return wanted

    _change("signer.require", store, required, why, who, json)


@app.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the keys, the oldest first, also those that have ended or are revoked."""
    from vllm_edit.store.signers import read_signers
    from vllm_edit.store.store import Store

    _show(read_signers(Store.open(store).files), json)


def _change(what: str, store: str | None, change: Callable[[Signers], Signers], why: str, who: str, json: bool) -> None:
    """Change the store's list, with a row in the audit, and show it."""
    from vllm_edit.store.signers import change_signers
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    _show(change_signers(opened.files, opened.registry, what, change, why=why, by=who), json)


def _show(signers: Signers, json: bool) -> None:
    if json:
        print_json({"required": signers.required, "keys": [_record(signer) for signer in signers.keys]})
        return
    print_line(f"signatures are {'required' if signers.required else 'not required'}")
    rows = [(signer.id, signer.who, _state(signer), when(signer.since), signer.public) for signer in signers.keys]
    print_table(("ID", "NAME", "STATE", "SINCE", "PUBLIC KEY"), rows)


def _record(signer: Signer) -> JSONObject:
    return {"id": signer.id, **signer.model_dump(mode="json")}


def _state(signer: Signer) -> str:
    if signer.revoked is not None:
        return f"revoked {when(signer.revoked)}"
    return "trusted" if signer.until is None else f"until {when(signer.until)}"
