"""The differences between the edits of two patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_edit.edit import Edit
from vllm_edit.json_value import JSONObject


@dataclass(frozen=True)
class Change:
    """An edit of both patches, as JSON, and the names of its fields that differ."""

    fields: list[str]
    a: JSONObject
    b: JSONObject


@dataclass(frozen=True)
class Changes:
    """The differences between patch A and patch B. `added`: edits of B only. `removed`: edits of A only."""

    added: list[JSONObject]
    removed: list[JSONObject]
    changed: list[Change]

    @property
    def none(self) -> bool:
        """True if both patches have the same edits."""
        return not (self.added or self.removed or self.changed)


def compare_edits(a: Sequence[Edit], b: Sequence[Edit]) -> Changes:
    """Compare edits by fact: edits with the same subject and relation (or prompt, if none) are the same fact."""
    before = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in a}
    after = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in b}
    changed = []
    for key in [key for key in after if key in before and before[key] != after[key]]:
        fields = [field for field in after[key] if before[key].get(field) != after[key][field]]
        fields += [field for field in before[key] if field not in after[key]]
        changed.append(Change(fields, before[key], after[key]))
    return Changes(
        added=[edit for key, edit in after.items() if key not in before],
        removed=[edit for key, edit in before.items() if key not in after],
        changed=changed,
    )
