"""The store: one site, its compiled patches as immutable files, and the registry of who is served what.

site.json                      the site, with its digest
moments/<digest>.safetensors   its second moment, or networks/<digest>.safetensors for a site with a hypernetwork
passages.json                  ordinary text for the gates (`passages`), where the store has some
texts.json, pool.json, …       the base's own text, the facts that it knows, what the sweep tried (`documents`)
patches/<patch>@<digest>/      one compiled patch each (`artefacts.folder`)
records/<name>/<kind>-<time>.json   reports and timings, outside the digest
registry.db                    unless VLLM_EDIT_REGISTRY names another database
audit.json                     the head of the registry's audit (`registry.anchor`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_edit import names
from vllm_edit.artefacts.envelope import MANIFEST, Read, read_manifest
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import WITHOUT_SETTINGS, Fingerprint, Site
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable
from vllm_edit.files import Files, LocalFiles, make_folder, open_files
from vllm_edit.registry.anchor import Anchor
from vllm_edit.registry.audit import EMPTY
from vllm_edit.registry.entries import PatchEntry
from vllm_edit.registry.owner import Owner
from vllm_edit.registry.registry import Registry
from vllm_edit.store.documents import Kind, path_of, read_document, write_document
from vllm_edit.store.places import default_url, registry_url
from vllm_edit.store.records import Record, add_record, read_records
from vllm_edit.store.site_files import SITE, check_material, read_material, read_site, write_material, write_site

if TYPE_CHECKING:
    import torch

    from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration


class Store:
    """Compiled patches of one site. `open` one that exists, `create` one with its site."""

    def __init__(self, url: str, files: Files, registry: Registry) -> None:
        self.url, self.files, self.registry = url, files, registry

    @classmethod
    def open(cls, url: str | Path | None = None) -> Store:
        """The store at `url`: a folder or an fsspec URL; by default `$VLLM_EDIT_STORE`, else `.vllm-edit`.

        Its registry is connected when it is first asked.

        Raises:
            NotFound: there is none.
        """
        place = default_url() if url is None else str(url)
        files = open_files(place)
        if not files.exists(SITE):
            raise NotFound(f"no store at {place}; make one with `vllm-edit store init --store {place}`")
        return cls(place, files, _registry(place, files, lambda: read_site(files).digest))

    @classmethod
    def create(
        cls,
        url: str | Path | None,
        site: Site,
        material: Mapping[str, torch.Tensor],
        passages: Sequence[str] = (),
        documents: Mapping[Kind, Any] | None = None,
    ) -> Store:
        """A store with `site` and its second moment or network. One that has this site already is opened as it is.

        passages: ordinary text for its gates; `keep_passages` adds it later.  documents: others to keep from the start.

        Raises:
            EditError: another site is fixed there, or `material` is not what the site names.
        """
        place = default_url() if url is None else str(url)
        files = open_files(place)
        if files.exists(SITE):
            return cls._made_before(place, site)
        check_material(site, material)
        registry = _registry(place, files, lambda: site.digest)

        def write() -> None:
            if files.exists(SITE):  # another process was faster
                cls._made_before(place, site)
                return
            write_material(files, site, material)
            for kind, content in {"passages": list(passages), **(documents or {})}.items():
                if content:
                    write_document(files, kind, content)
            write_site(files, site)  # last: with it the store exists

        if isinstance(files, LocalFiles):
            try:
                make_folder(files.root.absolute())
            except OSError as error:
                raise Unavailable(f"{place} cannot be written: {error.strerror}; name another --store") from error
        try:
            Anchor(files).advance(EMPTY)  # before any row: from now on a missing anchor is a finding
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
        """The store that there is.

        Raises:
            EditError: it has another site.
        """
        store = cls.open(place)
        if (own := store.site()).digest != site.digest:
            raise EditError(
                f"{place} has a site already (layer {own.layer}, {own.digest}), "
                "and a store has one for good; give another --store"
            )
        return store

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    # The site

    def site(self) -> Site:
        """The store's site.

        Raises:
            Corrupt: the file does not match the digest in it.
        """
        return read_site(self.files)

    def base(self) -> Fingerprint:
        """The fingerprint of the site's base; with the digest of its settings that was kept later, where one was.

        Raises:
            Corrupt: a file does not match the digest in it.
        """
        base = self.site().base
        return base if base.settings is not None else base.model_copy(update={"settings": self.document("settings")})

    def moment(self) -> dict[str, torch.Tensor]:
        """The site's second moment as it was given to `create`, checked against its digest.

        Raises:
            EditError: the site has a hypernetwork instead.
        """
        if self.site().network is not None:
            raise EditError(
                f"{self.url} is a store for MEND: its site has a hypernetwork and no second moment; compile with "
                "--method mend, or make another store (vllm-edit store init)"
            )
        return self.material()

    def material(self) -> dict[str, torch.Tensor]:
        """The tensors that belong to the site, second moment or network, checked against their digest."""
        return read_material(self.files, self.site())

    def passages(self) -> tuple[str, ...]:
        """Ordinary text on which the gates measure the drift of perplexity; none where the store keeps none.

        Raises:
            Corrupt: the file does not match the digest in it.
        """
        return tuple(map(str, read_document(self.files, "passages") or ()))

    def keep_passages(self, passages: Sequence[str]) -> None:
        """Keep ordinary text for the gates, for good: with other text they would judge by another measure.

        Raises:
            EditError: there are some already, or none are given.
        """
        if kept := self.passages():
            raise EditError(f"{self.url} keeps {len(kept)} passages already, and its gates judged by them")
        if not passages:
            raise EditError("expected at least one passage, got none")
        write_document(self.files, "passages", list(passages))

    def document(self, kind: Kind) -> Any:
        """What the store keeps under `kind` (see `documents`); None where it keeps none.

        Raises:
            Corrupt: the file does not match the digest in it.
        """
        return read_document(self.files, kind)

    def keep(self, kind: Kind, content: Any) -> None:
        """Keep a document, for good.

        Raises:
            EditError: there is one already.
        """
        if self.document(kind) is not None:
            raise EditError(f"{self.url} keeps {path_of(kind)} already, and what was drawn from it must not move")
        write_document(self.files, kind, content)

    # Compiled patches

    def save(self, compiled: CompiledPatch) -> str:
        """Store a compiled patch and return its name. Saving it again changes no file, but mends a damaged one.

        The files appear at once, then the registry learns of them; a name that appeared without the second step (the
        writer was killed) is entered by whoever lists the names next.
        """
        from vllm_edit.artefacts.folder import pack

        name = names.check_name(compiled.name)
        site = self.site()
        if compiled.manifest.site != site.digest:
            raise EditError(f"{name} was compiled at site {compiled.manifest.site}, this store's site is {site.digest}")
        put = partial(self._put, name, pack(compiled))
        if name not in self.registry.retired.since():  # else gc may be removing them right now
            put()
        has_files = partial(self._exists, name)
        self.registry.add_patch(name, compiled.manifest.valid_until, has_files=has_files, write_files=put)
        if compiled.report:
            self.add_record(name, "compile", compiled.report)
        return name

    def load(self, name: str) -> CompiledPatch:
        """A compiled patch with everything in it verified; `report` is the one of its last compilation.

        Raises:
            NotFound: no such name.
            Corrupt: a file does not match its digest; the message names the file.
        """
        from vllm_edit.artefacts.folder import unpack

        found, reports = unpack(self.manifest(name), self._reader(name)), self.records(name, "compile")
        return replace(found, report=reports[-1].data if reports else {})

    def check(self, name: str) -> None:
        """Verify every byte of a patch's files; raises `Corrupt` or `NotFound` as `load` does. Records are not read."""
        from vllm_edit.artefacts.folder import check

        check(self.manifest(name), self._reader(name))

    def manifest(self, name: str) -> Manifest:
        return read_manifest(name, self._reader(name))

    def demonstrations(self, name: str) -> tuple[Demonstration, ...]:
        """The patch's IKE demonstrations."""
        from vllm_edit.artefacts.folder import read_demonstrations

        return read_demonstrations(self.manifest(name), self._reader(name))

    def unit(self, name: str, member: str) -> CompiledPatch:
        """One subject's compiled patch of a patch with scope subject, verified; no other file is read.

        Raises:
            Corrupt: it does not match its name's digest.
        """
        from vllm_edit.artefacts.units import read_unit

        return read_unit(name, member, self._reader(name))

    def adapter_files(self, name: str) -> dict[str, bytes]:
        """The patch's PEFT folder, verified: bytes by file name."""
        from vllm_edit.artefacts.folder import read_adapter

        return read_adapter(self.manifest(name), self._reader(name))

    def adapter_folder(self, name: str, cache: str | Path | None = None) -> Path:
        """A verified copy of the patch's PEFT folder on this node, in memory by default: what vLLM loads.

        Its path depends on `cache` and the name only; it stays until someone removes it.
        """
        from vllm_edit.store.local_copy import local_copy

        return local_copy(names.check_name(name), self.adapter_files(name), cache)

    def adapter_id(self, name: str) -> int:
        """The id that vLLM knows the adapter by: from 1 up, the same in every process, never given twice."""
        return self.entry(name).adapter_id

    def entry(self, name: str) -> PatchEntry:
        """What the registry knows of a patch: adapter id, time, status."""
        names.check_name(name)
        try:
            return self.registry.patch(name)
        except NotFound:
            if not self._exists(name):
                raise
            self._enter(name)
            return self.registry.patch(name)

    def names(self) -> list[str]:
        """Names of all stored patches, the one saved last first; without those that gc is removing."""
        stored = self.stored()
        listed = [entry.name for entry in self.registry.patches()]
        if missing := stored.difference(listed, self.registry.retired.since()):
            for name in sorted(missing):
                self._enter(name)
            listed = [entry.name for entry in self.registry.patches()]
        return [name for name in listed if name in stored]

    def stored(self) -> set[str]:
        """Names of all patches whose files are there, whatever the registry says."""
        return {path.split("/")[1] for path in self.files.glob(f"patches/*/{MANIFEST}")}

    def resolve(self, text: str) -> str:
        """The full name that `text` means: a full name, `patch` (its newest) or `patch@…` (start of a digest).

        Raises:
            NotFound: no such name.
            EditError: the start of a digest fits several.
            Unavailable: the registry has it, but its files, or the whole store, are gone.
        """
        try:
            return names.resolve(text, self.names())
        except NotFound:
            self._check_not_lost(text)
            raise

    # Records

    def add_record(self, name: str, kind: str, data: Mapping[str, Any]) -> Record:
        """Attach something measured (JSON-able) to a patch; earlier records of the kind stay."""
        return add_record(self.files, name, kind, data)

    def records(self, name: str, kind: str | None = None) -> list[Record]:
        """A patch's records, oldest first."""
        return read_records(self.files, name, kind)

    def notes(self) -> list[str]:
        """What should be known of a store in which nothing is wrong, one line each."""
        try:
            return [WITHOUT_SETTINGS] if self.base().settings is None else []
        except EditError:  # `care.problems_of` tells it
            return []

    def remove_files(self, name: str) -> None:
        """Remove a patch's files, if there are any; its records stay. Only for one that the registry gives up."""
        self.files.remove_folder(_folder(name), marker=MANIFEST)

    def _check_not_lost(self, text: str) -> None:
        """Raises `Unavailable` where a name is not found because files are gone, as on a disk that is not mounted."""
        if not self.files.exists(SITE):
            raise Unavailable(f"the store at {self.url} is gone: {SITE} is not there; mount or restore it")
        retired = self.registry.retired.since()
        try:
            lost = names.resolve(text, [entry.name for entry in self.registry.patches() if entry.name not in retired])
        except EditError:
            return
        raise Unavailable(f"the files of {lost} are gone from the store at {self.url}; restore or compile them again")

    def _enter(self, name: str) -> None:
        """Enter a patch that a writer who was killed left out."""
        try:
            valid_until = self.manifest(name).valid_until
        except Corrupt:  # whoever uses it is told; saving it again mends file and entry
            valid_until = None
        except NotFound:  # gc removed it since it was seen
            return
        self.registry.enter_patch(name, valid_until, partial(self._exists, name))

    def _put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write a patch's files, or those of them that are not as they should be."""
        if self.files.exists(_folder(name)):
            self._mend(name, files)
        if not self._exists(name):
            self.files.write_folder(_folder(name), files, marker=MANIFEST)

    def _mend(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write those of a patch's files anew that are not as they should be, one by one: the others stay readable."""
        try:
            self.check(name)
            return
        except (Corrupt, NotFound):
            folder = _folder(name)
        for path in sorted(files, key=lambda path: path == MANIFEST):  # last, as it says that the others are there
            try:
                intact = self.files.read(f"{folder}/{path}") == files[path]
            except FileNotFoundError:
                intact = False
            if not intact:
                self.files.write(f"{folder}/{path}", files[path])

    def _exists(self, name: str) -> bool:
        return self.files.exists(f"{_folder(name)}/{MANIFEST}")

    def _reader(self, name: str) -> Read:
        """Reads files of artefact `name`; one that is missing is `Corrupt`, an artefact that is missing `NotFound`."""
        folder = _folder(names.check_name(name))

        def read(path: str) -> bytes:
            try:
                return self.files.read(f"{folder}/{path}")
            except FileNotFoundError:
                if self._exists(name):
                    raise Corrupt(f"{name}/{path} is missing; compile the patch again or restore the file") from None
                raise NotFound(f"no compiled patch {name}", names.nearest(name, self.names())) from None

        return read


def _folder(name: str) -> str:
    return f"patches/{names.check_name(name)}"


def _registry(place: str, files: Files, site: Callable[[], str]) -> Registry:
    """The registry of the store at `place`. site: its site's digest."""
    owner = Owner(place, site, lambda name: files.exists(f"{_folder(name)}/{MANIFEST}"))
    return Registry(registry_url(place, files), Anchor(files), owner)
