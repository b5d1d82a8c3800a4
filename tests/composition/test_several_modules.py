"""Composing patches at a site of several modules: a solve per module, one residual per group and module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.composition.examples import D_IN, D_OUT, capital, key_of
from vllm_edit.artefacts.compiled import CompiledPatch, Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.artefacts.units import pack_unit, read_unit
from vllm_edit.composition.checks import vouch
from vllm_edit.composition.compose import compose
from vllm_edit.composition.solver import System, as_saved, solve
from vllm_edit.deltas.delta import Delta
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.errors import Incompatible
from vllm_edit.json_value import JSONObject

MODULES = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
FRANCE, SPAIN = capital("France", "Lyon"), capital("Spain", "Seville")


def layered(name: str, edits: Sequence[Edit], keys: Sequence[torch.Tensor], **settings: float) -> CompiledPatch:
    """A patch with a column per edit and module. keys: [edits, D_IN] for each module."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    residuals = torch.randn(len(MODULES), len(edits), D_OUT, generator=generator)
    groups = list(range(len(edits)))
    parts = {
        module: as_saved(solve(System.of(own, own, groups, settings.get("damping", 0.0)), wanted))
        for module, own, wanted in zip(MODULES, keys, residuals, strict=True)
    }
    delta, factors = Delta(parts), Factors(torch.cat(list(keys)), torch.cat(list(keys)), residuals.flatten(0, 1))
    made: JSONObject = {"damping": 0.0, **settings}
    manifest = Manifest(
        patch=name,
        method="memit",
        base="b" * 32,
        site="s" * 32,
        modules=MODULES,
        edits=tuple(edits),
        settings=made,
        groups=tuple(KeyGroup(edits=(group,)) for group in groups),
        columns=tuple(
            Column(group=group, form="plain", module=number) for number in range(len(MODULES)) for group in groups
        ),
        rank=delta.rank,
        adapter=delta.digest,
        factors=digest_tensors(factors.tensors()),
    )
    return CompiledPatch(manifest, delta, factors)


def shift(patch: CompiledPatch, module: str, key: torch.Tensor) -> torch.Tensor:
    return patch.delta.parts[module].dense().double() @ key.double()


def test_each_module_meets_every_members_constraints_with_that_modules_keys_and_residuals() -> None:
    members = [layered("france", [FRANCE], [key_of(1), key_of(11)]), layered("spain", [SPAIN], [key_of(2), key_of(12)])]
    composed = compose(members)
    assert composed.manifest.modules == MODULES
    assert composed.manifest.rank == 2
    for number, module in enumerate(MODULES):
        for member, seed in zip(members, (1, 2), strict=True):
            (key,) = key_of(seed + 10 * number)
            expected = shift(member, module, key)
            assert (shift(composed, module, key) - expected).norm() < 1e-5 * expected.norm()
    assert [column.module for column in composed.manifest.columns] == [0, 0, 1, 1]
    assert composed.algebra is not None
    assert composed.algebra.constraint_error == pytest.approx(0.0, abs=1e-5)
    assert vouch(composed) == []


def test_a_composition_is_again_a_member_and_composing_one_alone_changes_nothing() -> None:
    member = layered("france", [FRANCE], [key_of(1), key_of(11)])
    again = compose([compose([member])])
    assert again.delta.digest == member.delta.digest
    assert again.manifest.columns == member.manifest.columns


def test_keys_that_nearly_coincide_at_one_module_alone_are_not_vouched_for() -> None:
    near = key_of(11) + 0.2 * key_of(99)
    members = [layered("france", [FRANCE], [key_of(1), key_of(11)]), layered("spain", [SPAIN], [key_of(2), near])]
    damped = [
        replace(member, manifest=member.manifest.model_copy(update={"settings": {"damping": 0.3}}))
        for member in members
    ]
    (problem,) = (line for line in vouch(compose(damped)) if "differs by" in line)
    assert "at most 0.2 is allowed" in problem


def test_groups_of_one_subject_are_merged_at_all_modules_by_their_keys_at_the_last() -> None:
    people = capital("France", "people", relation="people")
    apart, alike = key_of(2), key_of(11) + 0.01 * key_of(99)
    members = [layered("france", [FRANCE], [key_of(1), key_of(11)]), layered("people", [people], [apart, alike])]
    composed = compose(members)
    assert [len(group.edits) for group in composed.manifest.groups] == [2]
    first, second = (member.factors for member in members)
    assert first is not None
    assert second is not None
    assert composed.factors is not None
    torch.testing.assert_close(composed.factors.residuals, first.residuals + second.residuals)
    assert [column.module for column in composed.manifest.columns] == [0, 0, 1]


def test_two_members_of_one_subject_whose_keys_coincide_at_the_first_module_only_are_refused_by_name() -> None:
    people, first = capital("France", "people", relation="people"), key_of(1)
    two = [layered("france", [FRANCE], [first, key_of(11)]), layered("people", [people], [first, key_of(12)])]
    other = layered("spain", [SPAIN], [key_of(2), key_of(13)])
    for members in (two, two[::-1], [other, *two]):
        with pytest.raises(
            Incompatible, match=r"edit one subject, France: .*; compile these edits in one patch$"
        ) as found:
            compose(members)
        assert all(f"{name}@" in str(found.value) for name in ("france", "people"))
    together = layered("both", [FRANCE, people], [torch.cat([first, key_of(3)]), key_of(11, 12)])
    assert compose([together, other]).manifest.rank == 3, "one patch, and another subject"


def test_groups_of_one_member_were_measured_together_and_are_not_refused() -> None:
    people = capital("France", "people", relation="people")
    near = key_of(1) + 0.1 * key_of(99)
    together = layered("both", [FRANCE, people], [torch.cat([key_of(1), near]), key_of(11, 12)])
    assert compose([together]).delta.digest == together.delta.digest


def test_patches_with_different_null_spaces_are_refused() -> None:
    keys = [key_of(1), key_of(11)]
    inside = layered("france", [FRANCE], keys, null_space=0.02)
    for other in (layered("spain", [SPAIN], keys), layered("spain", [SPAIN], keys, null_space=0.1)):
        with pytest.raises(Incompatible, match=r"null space differs .* one method and one threshold"):
            compose([inside, other])
    assert compose([inside]).manifest.null_space == 0.02


def test_the_members_room_for_preserved_columns_holds_in_their_composition() -> None:
    kept = key_of(*range(100, 100 + D_IN // 2))

    def with_kept(**settings: float) -> CompiledPatch:
        member = layered("france", [FRANCE], [key_of(1), key_of(11)], damping=0.1, **settings)
        assert member.factors is not None
        columns = member.manifest.columns + tuple(
            Column(group=0, form=f"keep:{number}", share=0.0, module=1) for number in range(len(kept))
        )
        keys = torch.cat([member.factors.keys, kept])
        factors = replace(member.factors, keys=keys, whitened=keys)
        return replace(member, factors=factors, manifest=member.manifest.model_copy(update={"columns": columns}))

    preserved = [
        sum(not column.share for column in compose([with_kept(**settings)]).manifest.columns)
        for settings in ({}, {"room": 2.0})
    ]
    assert preserved == [D_IN // 4, D_IN // 2]


def test_a_unit_of_several_modules_is_read_back_as_it_was() -> None:
    member = layered("france", [FRANCE], [key_of(1), key_of(11)])
    read = read_unit("patch@" + "d" * 32, member.name, lambda path: pack_unit(member))
    assert read.delta.digest == member.delta.digest
    assert read.manifest == member.manifest
    assert read.factors is not None
    assert torch.equal(read.factors.residuals, member.factors.residuals if member.factors else torch.empty(0))


def test_a_column_of_the_first_module_is_written_as_before_there_were_several() -> None:
    assert Column(group=0, form="plain").model_dump() == {"group": 0, "form": "plain", "share": 1.0}
    assert Column(group=0, form="plain", module=1).model_dump()["module"] == 1
    assert Column.model_validate_json('{"group": 0, "form": "plain", "share": 1.0}').module == 0
