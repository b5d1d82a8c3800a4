"""The differences between the edits of two patches."""

from __future__ import annotations

from datetime import UTC, datetime

from vllm_edit.artefacts.edit_changes import compare_edits
from vllm_edit.edit import Edit

FRANCE = Edit(prompt="The capital of France is", subject="France", target_new="Lyon")
SPAIN = Edit(prompt="The capital of Spain is", subject="Spain", target_new="Seville")


def test_edits_are_added_removed_and_changed() -> None:
    other = FRANCE.model_copy(update={"target_new": "Nice"})
    assert [edit["subject"] for edit in compare_edits([FRANCE], [FRANCE, SPAIN]).added] == ["Spain"]
    assert [edit["subject"] for edit in compare_edits([FRANCE, SPAIN], [FRANCE]).removed] == ["Spain"]
    [change] = compare_edits([FRANCE], [other]).changed
    assert (change.fields, change.a["target_new"], change.b["target_new"]) == (["target_new"], "Lyon", "Nice")
    assert compare_edits([FRANCE, SPAIN], [SPAIN, FRANCE]).none


def test_a_field_that_only_one_of_both_has_differs() -> None:
    """`valid_until` is written only if it is set."""
    ending = FRANCE.model_copy(update={"valid_until": datetime(2030, 1, 1, tzinfo=UTC)})
    for a, b in ((FRANCE, ending), (ending, FRANCE)):
        [change] = compare_edits([a], [b]).changed
        assert change.fields == ["valid_until"]
        assert None in (change.a.get("valid_until"), change.b.get("valid_until"))
