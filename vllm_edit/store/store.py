"""The store: one site, its compiled patches as immutable files, and the registry of tenants and publications.

site.json                      the site, with its digest
moments/<digest>.safetensors   its second moment; of other sites networks/… or statistics/…
passages.json                  ordinary text for the gates (`gate_texts`), optional
texts.json, pool.json, …       the base's own text, the facts that it knows, the sweep's measurements (`documents`)
patches/<patch>@<digest>/      one compiled patch each (`artefacts.folder`)
records/<name>/<kind>-<time>.json   reports and timings, outside the digest
reports/recompile-….json       what became of another store's patches here (`release.recompile_report`)
signers.json                   the keys whose signatures count (`signers`), optional
signatures/<name>/<key>.json   signatures of the patches
registry.db                    unless VLLM_EDIT_REGISTRY names another database
audit.json                     the head of the registry's audit (`registry.audit`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_edit import names
from vllm_edit.artefacts.checksums import MANIFEST, Read, read_manifest
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import WITHOUT_SETTINGS, Fingerprint, Site
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable
from vllm_edit.files import Files, LocalFiles, make_folder, open_files
from vllm_edit.json_value import JSONValue
from vllm_edit.registry.audit import EMPTY, Anchor
from vllm_edit.registry.owner import Owner
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.registry import Registry
from vllm_edit.store.documents import Kind, check_document, path_of, read_document, write_document
from vllm_edit.store.locations import default_url, registry_url
from vllm_edit.store.records import Record, add_record, read_records
from vllm_edit.store.signers import read_signers
from vllm_edit.store.signing import check_signed, sign
from vllm_edit.store.site_files import SITE, check_tensors, read_site, read_tensors, write_site, write_tensors

if TYPE_CHECKING:
    import torch

    from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration
    from vllm_edit.artefacts.signatures import Signature, SigningKey


class Store:
    """Compiled patches of one site. `open` an existing store, or `create` a store with its site.

    Example:
        >>> store = Store.open("my-store")
        >>> compiled = store.load(store.resolve("capital"))
    """

    def __init__(self, url: str, files: Files, registry: Registry) -> None:
        """A store whose site exists. `open` and `create` find the arguments.

        Args:
            url: the store's folder or URL.
            files: its files.
            registry: its tenants, publications and keys.
        """
        self.url, self.files, self.registry = url, files, registry

    @classmethod
    def open(cls, url: str | Path | None = None, registry: str | None = None) -> Store:
        """Open an existing store. The registry is connected at its first use.

        Args:
            url: a folder or an fsspec URL; None for `$VLLM_EDIT_STORE`, else `.vllm-edit`.
            registry: URL of the registry's database; None for `$VLLM_EDIT_REGISTRY`, else a file in the store.

        Raises:
            NotFound: there is no store.
        """
        place = default_url() if url is None else str(url)
        files = open_files(place)
        if not files.exists(SITE):
            raise NotFound(f"no store at {place}; make one with `vllm-edit store init --store {place}`")
        return cls(place, files, _registry(place, files, lambda: read_site(files).digest, registry))

    @classmethod
    def create(
        cls,
        url: str | Path | None,
        site: Site,
        tensors: Mapping[str, torch.Tensor],
        passages: Sequence[str] = (),
        documents: Mapping[Kind, JSONValue] | None = None,
    ) -> Store:
        """Create a store, or open the existing store if it has the same site.

        Args:
            url: Folder or fsspec URL; None for the default.
            site: The store's site.
            tensors: The site's second moment, network or gradient statistics, by tensor name.
            passages: Ordinary text for the gates; `keep_passages` can add it later.
            documents: Further documents to write, by kind.

        Raises:
            EditError: the store has another site, `tensors` does not match the digest that the site names, or a
                document is not as `keep` needs it.
            Unavailable: the folder or the registry's database cannot be written.
        """
        place = default_url() if url is None else str(url)
        files = open_files(place)
        if files.exists(SITE):
            return cls._made_before(place, site)
        check_tensors(site, tensors)
        kept = {kind: content for kind, content in {"passages": list(passages), **(documents or {})}.items() if content}
        for kind, content in kept.items():
            check_document(kind, content)
        registry = _registry(place, files, lambda: site.digest)

        def write() -> None:
            if files.exists(SITE):  # another process created it first
                cls._made_before(place, site)
                return
            write_tensors(files, site, tensors)
            for kind, content in kept.items():
                write_document(files, kind, content)
            write_site(files, site)  # last: this file makes the store exist

        if isinstance(files, LocalFiles):
            try:
                make_folder(files.root.absolute())
            except OSError as error:
                raise Unavailable(f"{place} cannot be written: {error.strerror}; name another --store") from error
        try:
            Anchor(files).advance(EMPTY)  # before the first row, so that `verify` can report a missing anchor
            with files.locked(SITE):
                registry.establish(write)
        except EditError:
            registry.close()
            if files.exists(SITE):
                return cls._made_before(place, site)
            raise
        registry.close()
        return cls._made_before(place, site)

    @classmethod
    def _made_before(cls, place: str, site: Site) -> Store:
        """Open the existing store.

        Raises:
            EditError: it has another site.
        """
        store = cls.open(place)
        if (own := store.site()).digest != site.digest:
            raise EditError(
                f"{place} has a site already (layer {own.layer}, {own.digest}), "
                "and a store's site is fixed; give another --store"
            )
        return store

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    # The site

    def site(self) -> Site:
        """Read the store's site.

        Raises:
            Corrupt: the file does not match the digest in it.
        """
        return read_site(self.files)

    def base(self) -> Fingerprint:
        """Read the fingerprint of the site's base, including a digest of its settings that was added later.

        Raises:
            Corrupt: a file does not match the digest in it.
        """
        base = self.site().base
        return base if base.settings is not None else base.model_copy(update={"settings": self.document("settings")})

    def moment(self) -> dict[str, torch.Tensor]:
        """Read the second moments of the site's modules, checked against their digest.

        Raises:
            EditError: the site has a hypernetwork or gradient statistics instead.
        """
        if (kind := self.site().tensor_kind) != "second moment":
            raise EditError(
                f"expected a store with a second moment, the tensors of {self.url} are of kind {kind!r}: compile with "
                "mend, ke or ultraedit, whichever the store was made for, or make another store (vllm-edit store init)"
            )
        return self.site_tensors()

    def site_tensors(self) -> dict[str, torch.Tensor]:
        """Read the site's second moment, network or gradient statistics, checked against its digest."""
        return read_tensors(self.files, self.site())

    def passages(self) -> tuple[str, ...]:
        """Read the text on which the gates measure the drift of perplexity; empty if the store has none.

        Raises:
            Corrupt: the file does not match the digest in it.
        """
        stored = read_document(self.files, "passages")
        return tuple(map(str, stored)) if isinstance(stored, list) else ()

    def keep_passages(self, passages: Sequence[str]) -> None:
        """Add ordinary text for the gates, once: with other text, verdicts of gates would not be comparable.

        Args:
            passages: the text, one string for each passage.

        Raises:
            EditError: the store has passages already, or none are given.
        """
        if existing := self.passages():
            raise EditError(f"{self.url} has {len(existing)} passages already, and its gates used them")
        if not passages:
            raise EditError("expected at least one passage, got none")
        write_document(self.files, "passages", list(passages))

    def document(self, kind: Kind) -> JSONValue:
        """Read a document of the store, such as the base's own text or its pool of facts; None if there is none.

        Args:
            kind: the document's kind.

        Raises:
            EditError: there is no such kind.
            Corrupt: the file does not match the digest in it.
        """
        return read_document(self.files, kind)

    def keep(self, kind: Kind, content: JSONValue) -> None:
        """Write a document, once.

        Args:
            kind: the document's kind.
            content: JSON values.

        Raises:
            EditError: there is no such kind, the content has another form than the kind's (an object for `pool`, a
                string for `settings`, else a list), or the store has one already.
        """
        check_document(kind, content)
        if self.document(kind) is not None:
            raise EditError(f"{self.url} has {path_of(kind)} already, and a document is never replaced")
        write_document(self.files, kind, content)

    # Compiled patches

    def save(self, compiled: CompiledPatch) -> str:
        """Store a compiled patch. Saving it again rewrites only damaged files.

        The files appear atomically, then the patch is entered in the registry; if the writer is killed in between, the
        next caller of `names` enters it.

        Args:
            compiled: a patch or composition of this store's site.

        Returns:
            The patch's name.

        Raises:
            EditError: the patch was compiled at another site.
        """
        from vllm_edit.artefacts.folder import pack

        name = names.check_name(compiled.name)
        site = self.site()
        if compiled.manifest.site != site.digest:
            raise EditError(f"{name} was compiled at site {compiled.manifest.site}, this store's site is {site.digest}")
        put = partial(self._put, name, pack(compiled))
        if name not in self.registry.retired.since():  # gc may be deleting the files of a retired patch
            put()
        has_files = partial(self._exists, name)
        self.registry.add_patch(name, compiled.manifest.valid_until, has_files=has_files, write_files=put)
        if record := compiled.record:
            self.add_record(name, "compile", record)
        return name

    def load(self, name: str, *, signed: bool = True) -> CompiledPatch:
        """Read and verify a compiled patch; its report is that of its last compilation.

        Args:
            name: the full name; `resolve` finds it.
            signed: require a signature where the store does. A patch whose gate has not ended has none yet.

        Raises:
            NotFound: no such name.
            Unsigned: the store requires a signature, and the patch has no valid one.
            Corrupt: a file does not match its digest, or the last compile record holds no report; the message names it.
        """
        from vllm_edit.artefacts.folder import unpack

        read = self._signed_reader(name) if signed else self._reader(name)
        found, records = unpack(read_manifest(name, read), read), self.records(name, "compile")
        try:
            return found.with_record(records[-1].data) if records else found
        except Corrupt as error:
            raise Corrupt(f"the last compile record of {name}: {error}") from error

    def check(self, name: str) -> None:
        """Verify every byte of a patch's files, without its records.

        Args:
            name: the full name.

        Raises:
            NotFound: no such name.
            Corrupt: a file does not match its digest; the message names the file.
        """
        from vllm_edit.artefacts.folder import check

        check(self.manifest(name), self._reader(name))

    def manifest(self, name: str) -> Manifest:
        """Read and verify a patch's manifest: its edits, settings and digests.

        Args:
            name: the full name.

        Raises:
            NotFound: no such name.
            Corrupt: the file does not match the digest in the name.
        """
        return read_manifest(name, self._reader(name))

    def demonstrations(self, name: str) -> tuple[Demonstration, ...]:
        """Read a patch's IKE demonstrations.

        Args:
            name: the full name.

        Raises:
            NotFound: no such name.
            Unsigned: the store requires a signature, and the patch has no valid one.
            Corrupt: a file does not match its digest.
        """
        from vllm_edit.artefacts.folder import read_demonstrations

        read = self._signed_reader(name)
        return read_demonstrations(read_manifest(name, read), read)

    def unit(self, name: str, member: str) -> CompiledPatch:
        """Read and verify one subject's compiled patch of a patch with scope subject; no other file is read.

        Args:
            name: the full name of the patch.
            member: the unit's name, from the manifest's members.

        Raises:
            NotFound: no such name.
            Unsigned: the store requires a signature, and the patch has no valid one.
            Corrupt: the patch has no such unit, or the file does not match the digest in its name.
        """
        from vllm_edit.artefacts.units import read_unit

        return read_unit(name, member, self._signed_reader(name))

    def adapter_files(self, name: str) -> dict[str, bytes]:
        """Read and verify a patch's adapter in PEFT's layout.

        Args:
            name: the full name.

        Returns:
            File name → bytes.

        Raises:
            EditError: the patch has scope subject, and so no single adapter.
            NotFound: no such name.
            Unsigned: the store requires a signature, and the patch has no valid one.
            Corrupt: a file does not match its digest.
        """
        from vllm_edit.artefacts.folder import read_adapter

        read = self._signed_reader(name)
        return read_adapter(read_manifest(name, read), read)

    def adapter_folder(self, name: str, cache: str | Path | None = None) -> Path:
        """Copy a patch's verified adapter to this node, for vLLM to load. The copy stays until it is removed.

        Args:
            name: the full name.
            cache: the folder of the copies; None for a folder in memory.

        Returns:
            The copy, which depends only on `cache` and the name.

        Raises:
            EditError: as `adapter_files`.
        """
        from vllm_edit.store.local_copy import local_copy

        return local_copy(names.check_name(name), self.adapter_files(name), cache)

    def adapter_id(self, name: str) -> int:
        """Return the adapter's id in the registry: at least 1, and the same in every process.

        A registry gives no id twice, unless it is restored from an older copy. So a server numbers adapters itself.

        Args:
            name: the full name of a patch.

        Raises:
            NotFound: no such name.
        """
        return self.entry(name).adapter_id

    def entry(self, name: str) -> PatchEntry:
        """Return the registry's entry of a patch: adapter id, time, status.

        Args:
            name: the full name.

        Raises:
            NotFound: no such name.
        """
        names.check_name(name)
        try:
            return self.registry.patch(name)
        except NotFound:
            if not self._exists(name):
                raise
            self._enter(name)
            return self.registry.patch(name)

    def names(self) -> list[str]:
        """Return the names of all stored patches, the last saved first, without those that gc is removing."""
        stored = self.stored()
        listed = [entry.name for entry in self.registry.patches()]
        if missing := stored.difference(listed, self.registry.retired.since()):
            for name in sorted(missing):
                self._enter(name)
            listed = [entry.name for entry in self.registry.patches()]
        return [name for name in listed if name in stored]

    def stored(self) -> set[str]:
        """Return the names of all patches whose files exist, independent of the registry."""
        return {path.split("/")[1] for path in self.files.glob(f"patches/*/{MANIFEST}")}

    def resolve(self, text: str) -> str:
        """Return a patch's full name, `<patch>@<digest>`.

        Args:
            text: a full name, `patch` (its newest) or `patch@…` (prefix of a digest).

        Raises:
            NotFound: no such name.
            EditError: the prefix of a digest is ambiguous.
            Unavailable: the registry has the patch, but its files, or the whole store, are missing.
        """
        try:
            return names.resolve(text, self.names())
        except NotFound:
            self._check_not_lost(text)
            raise

    def sign(self, name: str, key: SigningKey, by: str = "") -> Signature:
        """Sign a patch, after every byte of its files is verified.

        Args:
            name: the full name.
            key: the private key.
            by: who signs, for the audit.

        Raises:
            NotFound: no such name.
            Corrupt: a file does not match its digest.
            EditError: the store's list says that the key is revoked or has ended.
            Unavailable: the registry or the file cannot be written; repeat the call.
        """
        read_signers(self.files).trusts(key.id)
        self.check(name)
        return sign(self.files, self.registry, name, key, by)

    # Records

    def add_record(self, name: str, kind: str, data: Mapping[str, JSONValue]) -> Record:
        """Attach a measurement to a patch; earlier records of the kind stay.

        Args:
            name: the full name of the patch.
            kind: a word for the measurement, such as `report`.
            data: JSON values.

        Raises:
            NotFound: no such name.
            EditError: the kind is not a word of lower-case letters, digits and '_'.
        """
        if not self._exists(name):
            raise self._not_found(name)
        return add_record(self.files, name, kind, data)

    def records(self, name: str, kind: str | None = None) -> list[Record]:
        """Return a patch's records, oldest first.

        Args:
            name: the full name of the patch.
            kind: only records of this kind; None for all. `compile`, `gate` and `report` are the project's.

        Raises:
            NotFound: this is no full name. A patch whose files are gone keeps its records.
            EditError: the kind is not a word of lower-case letters, digits and '_'.
            Corrupt: a record cannot be read.
        """
        return read_records(self.files, name, kind)

    def notes(self) -> list[str]:
        """Return notes about the store that are not problems, one line each."""
        try:
            return [WITHOUT_SETTINGS] if self.base().settings is None else []
        except EditError:  # `problems_of` reports it
            return []

    def remove_files(self, name: str) -> None:
        """Remove a patch's files, if any; its records stay. Only for patches that the registry is removing.

        Args:
            name: the full name.
        """
        self.files.remove_folder(_folder(name), marker=MANIFEST)

    def _check_not_lost(self, text: str) -> None:
        """Raise `Unavailable` if a name is not found because files are missing, e.g. on a disk that is not mounted."""
        if not self.files.exists(SITE):
            raise Unavailable(f"the store at {self.url} is gone: {SITE} is missing; mount or restore it")
        retired = self.registry.retired.since()
        try:
            lost = names.resolve(text, [entry.name for entry in self.registry.patches() if entry.name not in retired])
        except EditError:
            return
        raise Unavailable(f"the files of {lost} are gone from the store at {self.url}; restore or compile them again")

    def _enter(self, name: str) -> None:
        """Enter a patch whose writer was killed before it did."""
        try:
            valid_until = self.manifest(name).valid_until
        except Corrupt:  # its use raises; saving it again repairs both the file and the entry
            valid_until = None
        except NotFound:  # gc has removed it meanwhile
            return
        self.registry.enter_patch(name, valid_until, partial(self._exists, name))

    def _put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write a patch's files, or repair existing files."""
        if self.files.exists(_folder(name)):
            self._repair(name, files)
        if not self._exists(name):
            self.files.write_folder(_folder(name), files, marker=MANIFEST)

    def _repair(self, name: str, files: Mapping[str, bytes]) -> None:
        """Rewrite a patch's missing or damaged files one by one; the others stay readable."""
        try:
            self.check(name)
            return
        except (Corrupt, NotFound):
            folder = _folder(name)
        for path in sorted(files, key=lambda path: path == MANIFEST):  # manifest last: it marks the folder complete
            try:
                intact = self.files.read(f"{folder}/{path}") == files[path]
            except FileNotFoundError:
                intact = False
            if not intact:
                self.files.write(f"{folder}/{path}", files[path])

    def _not_found(self, name: str) -> NotFound:
        return NotFound(f"no compiled patch {name}", names.nearest(name, self.names()))

    def _exists(self, name: str) -> bool:
        return self.files.exists(f"{_folder(name)}/{MANIFEST}")

    def _signed_reader(self, name: str) -> Read:
        """Like `_reader`, of a patch whose signature counts where the store requires one.

        The signed files are read once, so that nobody can replace them between the check and their use.

        Raises:
            Unsigned: the store requires a signature, and the patch has no valid one.
        """
        signed, read = check_signed(self.files, names.check_name(name)), self._reader(name)
        return lambda path: signed[path] if path in signed else read(path)

    def _reader(self, name: str) -> Read:
        """Return a reader of artefact `name`; it raises `Corrupt` or, if the whole artefact is missing, `NotFound`."""
        folder = _folder(names.check_name(name))

        def read(path: str) -> bytes:
            try:
                return self.files.read(f"{folder}/{path}")
            except FileNotFoundError:
                if self._exists(name):
                    raise Corrupt(f"{name}/{path} is missing; compile the patch again or restore the file") from None
                raise self._not_found(name) from None

        return read


def _folder(name: str) -> str:
    return f"patches/{names.check_name(name)}"


def _registry(place: str, files: Files, site: Callable[[], str], url: str | None = None) -> Registry:
    """Return the registry of the store at `place`. `site` reads the digest of its site; `url` names the database."""
    owner = Owner(place, site, lambda name: files.exists(f"{_folder(name)}/{MANIFEST}"))
    return Registry(url or registry_url(place, files), Anchor(files), owner, partial(check_signed, files))
