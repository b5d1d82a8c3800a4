"""A patch with scope subject: units compiled separately, chosen by name, composed jointly, judged by algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.scoped import Narrowing, ScopeIndex, by_subject
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.errors import Corrupt, EditError, Incompatible, UnsafeEdit
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

EDITS = (
    FRANCE.model_copy(update={"aliases": ("French Republic",)}),
    JAPAN,
    BRAZIL,
    Edit(prompt="The people of FRANCE speak", subject="FRANCE", relation="language", target_new="French"),
)
PATCH = Patch(name="world", scope="subject", edits=EDITS)


@pytest.fixture(scope="module")
def world() -> CompiledPatch:
    setup = bench()
    return compile_patch(PATCH, setup.base, site=setup.site, site_tensors=setup.moment, settings=LOOSE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, world: CompiledPatch) -> Store:
    setup = bench()
    store = Store.create(tmp_path_factory.mktemp("scoped") / "store", setup.site, setup.moment.tensors())
    store.save(world)
    return store


def test_edits_are_grouped_by_subject_in_the_order_in_which_subjects_appear() -> None:
    assert by_subject(EDITS) == ((0, 3), (1,), (2,))


def test_subjects_differ_by_article_and_punctuation_but_not_by_spelling() -> None:
    names = [
        "The Who",
        "WHO",
        ".NET",
        "Net",
        "Côte d'Ivoire",
        "Côte d’Ivoire",
        "İzmir",
        "IZMIR",
        "Coca‑Cola",
        "Coca-Cola",
    ]
    edits = [Edit(prompt=f"{name} is", subject=name, target_new="x") for name in names]
    assert by_subject(edits) == ((0,), (1,), (2,), (3,), (4, 5), (6, 7), (8, 9))


def test_a_patch_whose_subjects_were_distinguished_by_other_rules_is_refused(world: CompiledPatch) -> None:
    fewer = world.manifest.model_copy(update={"members": world.manifest.members[:2]})
    with pytest.raises(Incompatible, match="compile it again"):
        ScopeIndex.of(fewer)


def test_each_subject_is_compiled_as_it_would_be_alone(world: CompiledPatch) -> None:
    setup = bench()
    alone = [
        Patch(name="world", gate=PATCH.gate, edits=tuple(EDITS[number] for number in own)) for own in by_subject(EDITS)
    ]
    expected = compile_separately(alone, setup.base, site=setup.site, site_tensors=setup.moment, settings=LOOSE)
    assert world.manifest.members == tuple(unit.name for unit in expected)
    assert world.manifest.adapter is None
    assert [record.subject for record in world.report.edits] == [edit.subject for edit in EDITS]
    assert sorted(edit for group in world.manifest.groups for edit in group.edits) == [0, 1, 2, 3]


def test_a_patch_with_scope_subject_is_compiled_with_its_own_defaults_where_no_setting_is_given() -> None:
    setup, given = bench(), {"steps": 0, "margin": 1.5, "on_missed": "report"}
    scoped, everywhere = (
        compile_patch(
            PATCH.model_copy(update={"scope": scope}),
            setup.base,
            site=setup.site,
            site_tensors=setup.moment,
            settings=given,
        )
        for scope in ("subject", "all")
    )
    wanted = {**RomeSettings.of({"margin": 1.5}).identity(0.0, 1.5), **RomeSettings.scoped, **given}
    for unit in scoped.units:
        assert unit.manifest.settings == {name: wanted[name] for name in unit.manifest.settings}
    assert everywhere.manifest.settings["same_ending"] == RomeSettings().same_ending
    whole = compile_patch(PATCH, setup.base, site=setup.site, site_tensors=setup.moment, settings=RomeSettings(**given))
    assert whole.units[0].manifest.settings["learning_rate"] == RomeSettings().learning_rate


def test_an_edit_that_misses_is_refused_by_name() -> None:
    setup = bench()
    with pytest.raises(UnsafeEdit, match="Japan"):
        compile_patch(PATCH, setup.base, site=setup.site, site_tensors=setup.moment, settings={"steps": 0})


def test_a_text_gets_exactly_the_composition_of_its_subjects(world: CompiledPatch) -> None:
    narrowing = Narrowing(world)
    france, japan, brazil = world.units
    assert narrowing.of("Who wrote Hamlet?") is None
    assert narrowing.of("The currency of JAPAN is the") is japan
    assert narrowing.of("The French Republic") is france
    assert narrowing.edits("The French Republic") == (0, 3)
    both = narrowing.of("Brazil or Japan?")
    assert both is not None
    assert set(both.manifest.members) == {japan.name, brazil.name}
    assert both is narrowing.of("Japan or Brazil?")
    # Both units' constraints hold in the joint solution: each edit shifts its own key as it did alone.
    for unit in (japan, brazil):
        assert unit.factors is not None
        key = unit.factors.keys[0].double()
        for (module, part), alone in zip(both.delta.parts.items(), unit.delta.parts.values(), strict=True):
            assert module == world.manifest.modules[0]
            shift, expected = part.B.double() @ (part.A.double() @ key), alone.B.double() @ (alone.A.double() @ key)
            assert torch.allclose(shift, expected, atol=1e-3 * float(expected.norm()))


def test_more_subjects_than_an_adapter_holds_are_refused_with_their_names(world: CompiledPatch) -> None:
    index = ScopeIndex.of(world.manifest)
    assert sum(len(unit.groups) for unit in index.units) > 2
    with pytest.raises(EditError, match=r"France, Japan, Brazil.*one adapter holds 2"):
        index.check((0, 1, 2), 2)
    index.check((1, 2), 2)


def test_units_without_key_groups_count_with_their_rank() -> None:
    setup = bench()
    settings = {"rank": 3, "steps": 1, "on_missed": "report"}
    tuned = compile_patch(PATCH, setup.base, "ft", site=setup.site, site_tensors=setup.moment, settings=settings)
    index = ScopeIndex.of(tuned.manifest)
    assert [unit.rank for unit in index.units] == [3, 3, 3]
    with pytest.raises(EditError, match=r"France, Japan, Brazil\), which need rank up to 9; one adapter holds 8"):
        index.check((0, 1, 2), 8)
    index.check((0, 1), 8)
    index.check((2,), 3)


def test_two_subjects_that_share_a_name_may_not_disagree() -> None:
    nippon = Edit(
        prompt="The yen of Nippon is", subject="Nippon", aliases=("Japan",), relation="currency", target_new="of"
    )
    with pytest.raises(ValidationError, match=r"edited to two different targets, also to 'Paris' \(see edits\.0"):
        Patch(name="twins", scope="subject", edits=(JAPAN, nippon))


def test_a_text_that_names_two_subjects_with_a_common_alias_keeps_both_keys() -> None:
    setup, settings = bench(), LOOSE.replace(forms=("plain", "alias"), damping=0.1)
    twins = [
        Edit(
            prompt=f"The capital of {name} is", subject=name, relation="capital", aliases=("the",), target_new="people"
        )
        for name in ("France", "Japan")
    ]
    patch = Patch(name="twins", scope="subject", edits=tuple(twins))
    compiled = compile_patch(patch, setup.base, site=setup.site, site_tensors=setup.moment, settings=settings)
    both = Narrowing(compiled, setup.site).of("France and Japan")
    assert both is not None
    assert {edit.subject for edit in both.manifest.edits} == {"France", "Japan"}
    assert both.manifest.rank == 2


def test_store_stores_units_separately_and_gives_back_the_saved_values(store: Store, world: CompiledPatch) -> None:
    found = store.load(world.name)
    assert found.manifest == world.manifest
    assert [unit.name for unit in found.units] == list(world.manifest.members)
    assert store.names() == [world.name]
    assert problems_of(store) == []
    unit = store.unit(world.name, world.manifest.members[1])
    assert unit.delta.digest == world.units[1].delta.digest
    assert unit.factors is not None
    with pytest.raises(EditError, match="scope subject"):
        store.adapter_files(world.name)


def test_a_damaged_unit_is_found(store: Store, world: CompiledPatch) -> None:
    member = world.manifest.members[2]
    path = Path(store.url) / "patches" / world.name / "units" / f"{member.partition('@')[2]}.safetensors"
    whole = path.read_bytes()
    try:
        for place in (20, len(whole) - 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(Corrupt):
                store.unit(world.name, member)
        path.write_bytes(store.files.read(f"patches/{world.name}/units/{world.units[0].manifest.digest}.safetensors"))
        with pytest.raises(Corrupt):  # the intact file of another unit
            store.unit(world.name, member)
    finally:
        path.write_bytes(whole)
    assert problems_of(store) == []


def test_demonstrations_belong_to_the_patch_and_change_its_name_only(world: CompiledPatch) -> None:
    demonstrated = with_demonstrations(world, Bank(), bench().base.tokenizer)
    assert demonstrated.name != world.name
    assert demonstrated.manifest.members == world.manifest.members
    assert {item.edit for item in demonstrated.demonstrations} == {0, 1, 2, 3}


def test_scope_all_leaves_the_names_of_patches_as_they_were() -> None:
    setup = bench()
    settings = {"forms": ("plain",), "ending": False, "on_missed": "report", "steps": 1}
    plain = compile_patch(
        Patch(name="plain", edits=(JAPAN,)), setup.base, site=setup.site, site_tensors=setup.moment, settings=settings
    )
    assert "scope" not in plain.manifest.model_dump(mode="json")
