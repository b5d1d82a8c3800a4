"""The report of a recompilation: what becomes of each patch and each edit at a new base. A file of the new store."""

from __future__ import annotations

import json
from collections import Counter
from typing import Literal

from pydantic import ValidationError

from vllm_edit.digest import digest_json, intact_content, with_digest
from vllm_edit.errors import Corrupt
from vllm_edit.files import Files
from vllm_edit.frozen import Frozen
from vllm_edit.json_value import JSONObject

EditResult = Literal["known", "holds", "fails", "refused"]
"""known: the base gives the new answer by itself, so the edit is left out. holds: the compiled patch gives it. fails:
it does not. refused: the patch could not be compiled."""
PatchStatus = Literal["known", "accepted", "rejected", "refused"]
"""known: the base knows every edit, so nothing is compiled. accepted, rejected: the gate's verdict."""

_KEY = "recompiled"


class RecompiledEdit(Frozen):
    """An edit at the new base."""

    subject: str
    prompt: str
    target_new: str
    result: EditResult


class RecompiledPatch(Frozen):
    """A patch at the new base.

    Attributes:
        old: its name in the old store.
        served_to: the tenants that are served it.
        new: the compiled patch in the new store, of the edits that the base does not know; None if there is none.
        status: what became of it.
        problems: one line for each metric that misses the gate, or the reasons why the patch was refused.
        seconds: duration of asking, compiling and judging.
    """

    old: str
    served_to: tuple[str, ...]
    new: str | None
    status: PatchStatus
    edits: tuple[RecompiledEdit, ...]
    problems: tuple[str, ...] = ()
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        """Number of edits by result."""
        return Counter(edit.result for edit in self.edits)


class RecompileReport(Frozen):
    """A recompilation; patches are added as they are done, so that it can be resumed.

    Attributes:
        old_model, old_site: the base of the old store as it was named, and the digest of its site.
        new_model, new_site: those of the new store.
        method, settings: how the patches are compiled.
        patches: the patches that are done.
    """

    old_model: str
    old_site: str
    new_model: str
    new_site: str
    method: str
    settings: JSONObject
    patches: tuple[RecompiledPatch, ...] = ()

    @property
    def path(self) -> str:
        """Its file in the new store: one for each pair of sites, method and settings."""
        identity = digest_json(self.model_dump(mode="json", exclude={"patches"}))
        return f"reports/recompile-{identity}.json"

    def stored(self, files: Files) -> RecompileReport:
        """The same report with the patches that are done according to its file.

        Raises:
            Corrupt: the file does not match the digest in it, or holds no such report.
        """
        try:
            return RecompileReport.model_validate(intact_content(files.read(self.path), _KEY))
        except FileNotFoundError:
            return self
        except (ValueError, ValidationError) as error:
            raise Corrupt(f"{self.path} cannot be read ({' '.join(str(error).split())[:200]}); remove it") from error

    def adding(self, files: Files, patch: RecompiledPatch) -> RecompileReport:
        """Add a patch to the report and to its file, in place of an earlier result, and return the report."""
        with files.locked(self.path):
            before = self.stored(files)
            others = tuple(other for other in before.patches if other.old != patch.old)
            new = before.model_copy(update={"patches": (*others, patch)})
            content = with_digest(_KEY, new.model_dump(mode="json"))
            files.write(self.path, json.dumps(content, ensure_ascii=False, indent=1).encode())
        return new
