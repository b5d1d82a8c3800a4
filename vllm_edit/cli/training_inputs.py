"""The edits and the text that `vllm-edit hypernet train` trains on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vllm_edit.cli.model_inputs import SHIPPED, texts_of
from vllm_edit.cli.output import print_line
from vllm_edit.errors import EditError, Incompatible

if TYPE_CHECKING:
    from vllm_edit.edit import Edit
    from vllm_edit.editing.hypernetworks.judged import Judged
    from vllm_edit.facts.pool import Pool
    from vllm_edit.models.base import Base
    from vllm_edit.store.store import Store


@dataclass(frozen=True)
class TrainingInputs:
    """Where edits and text come from.

    Attributes:
        patches: patch files.
        data: data sets.
        limit: maximum number of records of each data set; None for all.
        url: a store of the model, whose pool and text are used.
        count: number of edits of the pool, or of atlas's own.
        judged: files and folders of what evaluations edit.
        given_texts: a file with a passage per line.
        seed: random seed of the edits of the pool, or of atlas's own.
    """

    base: Base
    patches: Sequence[Path]
    data: Sequence[Path]
    limit: int | None
    url: str | None
    count: int
    judged: Sequence[Path]
    given_texts: Path | None
    seed: int

    @cached_property
    def edits(self) -> list[Edit]:
        """All training edits: of patch files, then of data sets, then of the pool.

        Gate probes of patch files, and probes that ask a judged prompt or mention a judged subject, are left out.

        Raises:
            EditError: a patch file edits a judged subject, a file is unreadable, or there is no source of edits.
        """
        from vllm_edit.datasets import read_edits
        from vllm_edit.editing.hypernetworks.dataset import check_apart, only_tune_probes
        from vllm_edit.facts import tables_folder
        from vllm_edit.facts.facts import Facts
        from vllm_edit.facts.training_edits import pool_edits
        from vllm_edit.patch import Patch

        forbidden = self._forbidden
        if not (self.patches or self.data or self.url):
            edits = self._own
            check_apart(edits, forbidden)
            return forbidden.apart(edits)
        declared = [edit for file in self.patches for edit in Patch.load(file).edits]
        check_apart(declared, forbidden)
        listed = only_tune_probes(declared)
        if gated := sum(len(edit.probes) for edit in declared) - sum(len(edit.probes) for edit in listed):
            print_line(
                f"note: {gated} probes of patch files are for gates and are left out; `split: tune` in a patch file "
                "makes a probe one to train on",
                error=True,
            )
        found = [edit for file in self.data for edit in read_edits(file, self.limit)]
        if self._pool is not None:
            found += pool_edits(self._pool, Facts.load(tables_folder()), self.count, seed=self.seed)
        apart = forbidden.apart(found)
        if len(apart) < len(found):
            print_line(
                f"note: {len(found) - len(apart)} of {len(found)} edits are about judged subjects and are left out",
                error=True,
            )
        return [*forbidden.apart(listed), *apart]

    @cached_property
    def texts(self) -> list[str]:
        """Ordinary text: the file's, else the store's, else atlas's.

        Raises:
            EditError: the file or the store has no text, or another model than atlas has neither.
        """
        if self._store is not None and self.given_texts is None:
            own = cast("list[str] | None", self._store.document("texts"))
            if not own:
                raise EditError(f"{self.url} has no text of the model's own: give --texts FILE, a passage per line")
            return own
        if self.base.name == SHIPPED and self.given_texts is None:
            from vllm_edit.atlas.hypernetworks import training_texts

            return training_texts()
        return texts_of(self.base.name, self.given_texts)

    @property
    def _own(self) -> list[Edit]:
        """Edits that atlas makes itself."""
        if self.base.name != SHIPPED:
            raise EditError(
                f"training a network for {self.base.name} needs edits: give --store URL (a store of the model, with "
                "its pool of facts), --data DATASET.json, or --edits PATCH.yaml with `tune` probes in it"
            )
        from vllm_edit.atlas.hypernetworks import training_edits

        return training_edits(self.count, seed=self.seed)

    @cached_property
    def _forbidden(self) -> Judged:
        """What is judged: the given files, and the subjects that `eval known` may draw from the store's pool."""
        from vllm_edit.editing.hypernetworks.judged import Judged

        known = self._pool.side("held_out").known if self._pool is not None else ()
        names = [name for one in known for name in (one.fact.subject.name, *one.fact.subject.aliases)]
        return Judged(list(_judged_edits(self.judged)), names)

    @cached_property
    def _store(self) -> Store | None:
        """The store at `url`.

        Raises:
            Incompatible: it is a store of another model.
        """
        from vllm_edit.store.store import Store

        if self.url is None:
            return None
        opened = Store.open(self.url)
        if opened.site().base.departures(self.base.fingerprint):
            raise Incompatible(f"{self.base.name} is not the base of {opened.url}; name a store of this model")
        return opened

    @cached_property
    def _pool(self) -> Pool | None:
        from vllm_edit.facts.stored_pool import pool_of

        return None if self._store is None else pool_of(self._store, self.base)


def _judged_edits(places: Iterable[Path]) -> Iterable[Edit]:
    """The edits of patches and data sets; a folder stands for those in it."""
    from vllm_edit.datasets import is_data_set, read_edits
    from vllm_edit.patch import Patch

    for place in places:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        for file in files:
            yield from read_edits(file) if is_data_set(file) else Patch.load(file).edits
