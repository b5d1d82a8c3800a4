"""Keys that an update must not move: as many as the cap allows, in a compiled patch and in a composition."""

from __future__ import annotations

import torch

from tests.composition.examples import D_IN, capital, key_of, shift, solved
from vllm_edit.artefacts.manifest import Column, KeyGroup
from vllm_edit.composition.compose import compose
from vllm_edit.composition.solver import OPENING, agreeing, interference, keepable, within_room
from vllm_edit.editing.rome.keys import Columns


def test_preserved_columns_take_a_quarter_of_the_dimensions_at_most_evenly_chosen() -> None:
    shares = [1.0, *[0.0] * 20, 1.0]
    places = within_room(shares, d_in=40)
    assert [place for place in places if shares[place]] == [0, 21]
    assert [place for place in places if not shares[place]] == list(range(1, 21, 2))
    assert within_room(shares, d_in=80) == list(range(22))


def test_a_key_that_contradicts_an_edit_or_repeats_is_not_preserved() -> None:
    keys = key_of(1, 2, 3)
    keys = torch.cat([keys, keys[:1] + 0.01 * keys[1:2], keys[2:3]])  # the edited key again, and a preserved key again
    assert keepable(interference(keys, keys), [1.0, 0.0, 0.0, 0.0, 0.0]) == [0, 1, 2]


def test_a_patch_compiled_jointly_has_the_cap_of_a_composition() -> None:
    kept = key_of(*range(100, 100 + D_IN // 2))
    together = solved("together", [capital("France", "Lyon")], key_of(1), kept=kept)
    composed = compose([together])
    assert together.factors is not None
    columns = Columns(
        together.factors.keys, together.factors.whitened, together.manifest.columns, (KeyGroup(edits=(0,)),)
    )
    compiled = [columns.columns[place] for place in columns.satisfiable([0])]
    assert list(composed.manifest.columns) == compiled
    assert sum(not column.share for column in compiled) == D_IN // 4


def test_a_key_that_two_members_preserve_is_one_column_and_stays_unmoved() -> None:
    kept = key_of(7)
    first = solved("first-patch", [capital("France", "Lyon")], key_of(1), kept=kept)
    second = solved("second", [capital("Spain", "Seville")], key_of(2), kept=kept)
    composed = compose([first, second])  # twice the same column would make the system singular
    assert [column.share for column in composed.manifest.columns] == [1.0, 0.0, 1.0]
    assert shift(composed, kept[0]).norm() < 1e-4 * shift(composed, key_of(1)[0]).norm()


def test_a_key_that_many_members_preserve_leaves_room_for_every_other_key() -> None:
    shared, own = key_of(7, 8, 9), key_of(*range(100, 107))
    members = [
        solved(
            f"patch-{number:02}",
            [capital(f"Country {number}", "Lyon")],
            key_of(1000 + number),
            kept=torch.cat([shared, own[number : number + 1]]),
        )
        for number in range(30)
    ]
    composed = compose(members, "all", damping=0.1)
    assert composed.factors is not None
    preserved = [
        key for key, column in zip(composed.factors.keys, composed.manifest.columns, strict=True) if not column.share
    ]
    assert len(preserved) == len(shared) + len(own) == D_IN // 4
    assert all(any(torch.equal(key, kept) for kept in preserved) for key in torch.cat([shared, own]))


def test_a_key_that_another_member_edits_is_not_preserved() -> None:
    first = solved("first-patch", [capital("France", "Lyon")], key_of(1), kept=key_of(2))
    second = solved("second", [capital("Spain", "Seville")], key_of(2))
    composed = compose([first, second])
    assert all(isinstance(column, Column) and column.share for column in composed.manifest.columns)
    moved, alone = (shift(patch, key_of(2)[0]) for patch in (composed, second))
    assert (moved - alone).norm() < 1e-4 * alone.norm()


def test_an_opening_key_is_left_out_for_another_groups_edit_at_the_same_place() -> None:
    keys = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.1, 1.0]])
    cosines = interference(keys, keys)
    forms = ["plain", "plain", OPENING, OPENING]
    assert agreeing(cosines, [0, 1, 0, 1], forms) == [0, 1], "two subjects' openings that coincide go both"
    assert agreeing(cosines, [0, 1, 0, 0], forms) == [0, 1, 2, 3], "of one group they share a residual"
