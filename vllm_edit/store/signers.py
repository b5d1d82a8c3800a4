"""The keys whose signatures a store accepts, and whether it requires one: a file that operators can also pin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import AwareDatetime, ValidationError

from vllm_edit.artefacts.signatures import Signature, is_valid, key_id
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable, Unsigned
from vllm_edit.files import Files
from vllm_edit.frozen import Frozen
from vllm_edit.invalid import problems_of
from vllm_edit.names import LABEL_LENGTH, check_note, short
from vllm_edit.registry.registry import Registry
from vllm_edit.store.locations import pinned_signers

SIGNERS = "signers.json"


class Signer(Frozen):
    """A key that may sign.

    Attributes:
        public: the public key in base64.
        who: whose key it is.
        since: when it was trusted.
        until: the end of its use. Signatures made before stay valid.
        revoked: when it was revoked. All its signatures are invalid from then on.
        why: the reason for the revocation.
    """

    public: str
    who: str
    since: AwareDatetime
    until: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    why: str = ""

    @property
    def id(self) -> str:
        return key_id(self.public)

    def objection(self, signature: Signature, name: str, sealed: Mapping[str, bytes]) -> str:
        """Why the signature does not count; empty if it counts."""
        if closed := self.closed(signature.at):
            return closed
        if not is_valid(signature, self.public, name, sealed):
            return "it does not match the patch's files"
        return ""

    def closed(self, at: datetime) -> str:
        """Why no signature that the key made at this time counts; empty if it can count."""
        if self.revoked is not None:
            return f"the key of {self.who} was revoked on {self.revoked:%Y-%m-%d}"
        if self.until is not None and at > self.until:
            return f"it was made on {at:%Y-%m-%d}, after the end of the key of {self.who} ({self.until:%Y-%m-%d})"
        return ""


class Signers(Frozen):
    """The keys that a store trusts.

    Attributes:
        required: refuse patches without a valid signature.
        keys: the keys, also those that have ended or are revoked, the oldest first.
    """

    required: bool = False
    keys: tuple[Signer, ...] = ()

    def find(self, id: str) -> Signer:
        """The key with this id, or with the only id that begins so.

        Raises:
            NotFound: there is no such key, or there are several.
        """
        found = [signer for signer in self.keys if id and signer.id.startswith(id)]
        if len(found) != 1:
            raise NotFound(f"expected the id of one key, got {id[:60]!r}; `vllm-edit signer list` shows the keys")
        return found[0]

    def trusting(self, public: str, who: str, until: datetime | None = None) -> Signers:
        """The same with one key more.

        Raises:
            EditError: the text is no public key, the key is known already, or the name is empty.
        """
        id = key_id(public)
        who = check_note(who, "a name of whose key it is", LABEL_LENGTH)
        if not who:
            raise EditError("expected a name of whose key it is, got none; give it with --name")
        if any(signer.id == id for signer in self.keys):
            raise EditError(f"the key {id} is in the list already; `vllm-edit signer list` shows its state")
        new = Signer(public=public, who=who, since=datetime.now(UTC), until=until)
        return self.model_copy(update={"keys": (*self.keys, new)})

    def ending(self, id: str, at: datetime) -> Signers:
        """The same with an end of the key's use.

        Raises:
            EditError: the key is revoked.
        """
        signer = self.find(id)
        if signer.revoked is not None:
            raise EditError(
                f"{signer.closed(at)}, so none of its signatures counts, whenever it ends; trust a new key in its "
                "place: vllm-edit signer trust PUBLIC --name NAME"
            )
        return self._with(signer.model_copy(update={"until": at}))

    def revoking(self, id: str, why: str = "") -> Signers:
        """The same without trust in the key's signatures; a repeated call changes nothing."""
        signer = self.find(id)
        if signer.revoked is not None:
            return self
        return self._with(signer.model_copy(update={"revoked": datetime.now(UTC), "why": why}))

    def requiring(self) -> Signers:
        """The same with a required signature.

        Raises:
            EditError: no signature could count, because each key is revoked or there is none.
        """
        if all(signer.revoked is not None for signer in self.keys):
            raise EditError(
                "no key is trusted, so no patch could have a valid signature; trust one first: vllm-edit signer trust "
                "PUBLIC --name NAME"
            )
        return self.model_copy(update={"required": True})

    def trusts(self, key: str) -> bool:
        """True if the key with this id is in the list, so that a signature which it makes now counts.

        Raises:
            EditError: the key is revoked or has ended, so that a signature which it makes now cannot count.
        """
        signer = next((signer for signer in self.keys if signer.id == key), None)
        if signer is None:
            return False
        if closed := signer.closed(datetime.now(UTC)):
            raise EditError(
                f"a signature of {key} would not count: {closed}; sign with another key, `vllm-edit signer list` shows "
                "which are trusted"
            )
        return True

    def check(self, name: str, sealed: Mapping[str, bytes], signatures: Sequence[Signature]) -> None:
        """Raise unless one of the signatures counts.

        Args:
            name: the artefact's full name.
            sealed: the bytes of its manifest and of `files.json`, by path.
            signatures: its signatures.

        Raises:
            Unsigned: none counts; the message has the reason for each.
        """
        known = {signer.id: signer for signer in self.keys}
        objections = []
        for signature in signatures:
            signer = known.get(signature.key)
            objection = "the key is unknown" if signer is None else signer.objection(signature, name, sealed)
            if not objection:
                return
            objections.append(f"signature of {signature.key}: {objection}")
        reason = "; ".join(objections) or "it is not signed"
        raise Unsigned(
            f"{name} has no signature that its store accepts: {reason}; sign it with a trusted key: vllm-edit sign "
            f"{short(name)} --key FILE"
        )

    def _with(self, changed: Signer) -> Signers:
        keys = tuple(changed if signer.id == changed.id else signer for signer in self.keys)
        return self.model_copy(update={"keys": keys})


def read_signers(files: Files) -> Signers:
    """Read `$VLLM_EDIT_SIGNERS`, else the store's list; without a list nothing is required.

    Raises:
        EditError: the variable names no file.
        Corrupt: the file cannot be read.
    """
    pinned = pinned_signers()
    try:
        data = files.read(SIGNERS) if pinned is None else pinned.read_bytes()
    except FileNotFoundError:
        if pinned is None:
            return Signers()
        raise EditError(f"VLLM_EDIT_SIGNERS names {pinned}, which does not exist; restore it") from None
    return _parsed(data, str(pinned or SIGNERS))


def change_signers(
    files: Files, registry: Registry, what: str, change: Callable[[Signers], Signers], *, why: str = "", by: str = ""
) -> Signers:
    """Change the store's list, with a row in the audit, and return it.

    The file is written after the row is committed, so that no key is trusted without a row. If the process dies in
    between, the same call changes the list, and `difference` reports it until then.

    Args:
        files: the store's files.
        registry: the store's registry.
        what: name of the change in the audit.
        change: from the list to the new list; if they are equal, nothing is written.
        why: reason for the audit.
        by: who changes it.

    Raises:
        EditError: `$VLLM_EDIT_SIGNERS` names another list, which an operator must change, or `change` raises it;
            nothing is changed.
        Unavailable: the registry cannot be used, and nothing is changed; or the file cannot be written, and the message
            says that the audit has the change already.
    """
    if (pinned := pinned_signers()) is not None:
        raise EditError(f"VLLM_EDIT_SIGNERS names {pinned}: change that file, or unset it to change the store's list")
    with files.locked(SIGNERS):
        with registry.changes.make(what, by=by, why=why) as made:
            before = read_signers(files)
            after = change(before)
            if after != before:
                made.record(before.model_dump(mode="json"), after.model_dump(mode="json"))
        if after != before:
            try:
                files.write(SIGNERS, after.model_dump_json(indent=1).encode())
            except Unavailable as error:
                raise Unavailable(
                    f"{error}; the audit has the change already and the list does not: repeat it"
                ) from error
        return after


def difference(files: Files, registry: Registry) -> str:
    """How the store's own list differs from the last change in the audit, and what to do; empty if they are equal.

    A list that is pinned by `$VLLM_EDIT_SIGNERS` is not compared.

    Raises:
        Corrupt: the file, or the row of the audit, holds no list.
    """
    if not (found := _difference(files, registry)):
        return ""
    with suppress(Unavailable), files.locked(SIGNERS):  # wait for a change that has still to write the file
        return _difference(files, registry)
    return found  # of a read-only store, which cannot be locked


def _difference(files: Files, registry: Registry) -> str:
    changed = registry.audit(what="signer.", newest=1)
    recorded = _parsed(changed[0].new.encode(), f"row {changed[0].number} of the audit") if changed else Signers()
    try:
        stored = _parsed(files.read(SIGNERS), SIGNERS)
    except FileNotFoundError:
        stored = Signers()
    if stored == recorded:
        return ""
    if not changed:
        return (
            f"{SIGNERS} lists keys, but the audit has no change of it: find out who wrote it, and remove it if unsure"
        )
    row = changed[0]
    return (
        f"{SIGNERS} differs from row {row.number} of the audit ({row.at}, {row.what} by {row.who}): repeat that "
        "command if it was interrupted; else restore the file from a copy, or from that row's `new` (vllm-edit audit "
        "show --json)"
    )


def _parsed(data: bytes, place: str) -> Signers:
    """The list in `data`. `place`: where it is, for messages."""
    try:
        return Signers.model_validate_json(data)
    except ValidationError as error:
        first = problems_of(error)[0]
        raise Corrupt(f"{place} is no list of signers ({first}); restore it from a copy") from error
