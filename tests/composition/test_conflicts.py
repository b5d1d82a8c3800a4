"""One fact with two targets is refused, naming each pair, until a policy names the winner; the loser is removed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import torch

from tests.composition.examples import added, capital, key_of, shift, solved
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.checks import vouch
from vllm_edit.composition.compose import compose
from vllm_edit.composition.conflicts import find_conflicts
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError, NotFound

SHARED = solved("shared", [capital("France", "Lyon"), capital("Spain", "Seville")], key_of(1, 2))
OWN = solved("own", [capital("France", "Nice")], key_of(1))
OTHER = solved("other", [capital("France", "Lille"), capital("Peru", "Cusco")], key_of(1, 3))


def targets(composition: CompiledPatch) -> dict[str, str]:
    return {edit.subject: edit.target_new for edit in composition.manifest.edits}


def test_without_a_policy_every_conflicting_pair_is_named() -> None:
    with pytest.raises(EditError) as refused:
        compose([SHARED, OWN, OTHER])
    *pairs, advice = str(refused.value).splitlines()
    assert [pair.split("→ ", 1)[1] for pair in pairs] == [
        f"'Lyon' in shared@{SHARED.manifest.digest[:12]}, 'Nice' in own@{OWN.manifest.digest[:12]}",
        f"'Lyon' in shared@{SHARED.manifest.digest[:12]}, 'Lille' in other@{OTHER.manifest.digest[:12]}",
        f"'Nice' in own@{OWN.manifest.digest[:12]}, 'Lille' in other@{OTHER.manifest.digest[:12]}",
    ]
    assert advice.startswith("decide with policy first, last, or the name")
    assert len(find_conflicts([SHARED, OWN, OTHER])) == 3


@pytest.mark.parametrize(("policy", "winner"), [("first", "Lyon"), ("last", "Lille"), ("own", "Nice")])
def test_a_policy_names_the_winner_and_only_the_losing_edits_leave(policy: str, winner: str) -> None:
    composed = compose([SHARED, OWN, OTHER], policy=policy)
    assert targets(composed) == {"France": winner, "Spain": "Seville", "Peru": "Cusco"}
    assert composed.manifest.rank == 3


def test_layering_later_names_win_with_policy_last() -> None:
    layered = compose([SHARED, OWN], policy="last")
    assert targets(layered) == {"France": "Nice", "Spain": "Seville"}
    key = key_of(1)[0]
    assert (shift(layered, key) - shift(OWN, key)).norm() < 1e-4 * shift(OWN, key).norm()
    (left_out,) = layered.manifest.settings["left_out"]
    assert layered.manifest.settings["policy"] == "last"
    assert left_out == {
        "left_out": SHARED.name,
        "prompt": "The capital of France is",
        "target": "Lyon",
        "winner": OWN.name,
        "kept_target": "Nice",
    }
    assert layered.manifest.members == tuple(sorted([SHARED.name, OWN.name]))


def test_a_policy_without_a_conflict_changes_nothing() -> None:
    peru = solved("peru", [capital("Peru", "Cusco")], key_of(3))
    assert compose([SHARED, peru], policy="last").name == compose([peru, SHARED]).name


def test_a_misspelt_policy_is_refused_without_a_conflict_too() -> None:
    peru = solved("peru", [capital("Peru", "Cusco")], key_of(3))
    with pytest.raises(NotFound, match="no compiled patch 'lats'"):
        compose([SHARED, peru], policy="lats")
    assert compose([SHARED, peru], policy="peru").name == compose([SHARED, peru]).name


def test_a_named_winner_decides_its_own_conflicts_and_no_others() -> None:
    elsewhere = solved("elsewhere", [capital("Peru", "Lima Norte")], key_of(3))
    with pytest.raises(EditError, match="'Cusco' in other@") as refused:
        compose([SHARED, OWN, OTHER, elsewhere], policy="own")
    assert "Nice" not in str(refused.value)
    with pytest.raises(NotFound, match="no compiled patch 'owm'; nearest: own@"):
        compose([SHARED, OWN], policy="owm")


def test_a_removed_edit_does_not_remove_another_edit() -> None:
    # Gaul is France by an alias that only the middle patch declares.
    first = solved("first-patch", [capital("France", "Lyon")], key_of(1))
    middle = solved("middle", [capital("Gaul", "Nice", aliases=("France", "Gallia"))], key_of(2))
    third = solved("third", [capital("Gallia", "Lille")], key_of(3))
    assert targets(compose([first, middle, third], policy="first")) == {"France": "Lyon", "Gallia": "Lille"}


@pytest.mark.parametrize(
    "other",
    [
        capital("the Republic of France", "Nice", aliases=("FRANCE",)),
        Edit(prompt="The capital of France is", subject="France", target_new="Nice"),
    ],
    ids=["an alias is the subject", "without a relation the prompt tells"],
)
def test_edits_that_count_as_the_same_fact(other: Edit) -> None:
    with pytest.raises(EditError, match="conflict"):
        compose([SHARED, solved("aliased", [other], key_of(5))])


@pytest.mark.parametrize(
    "other",
    [capital("France", "euro", relation="currency"), capital("France", " lyon. "), capital("Francia", "Nice")],
    ids=["another relation", "the same target", "another subject"],
)
def test_edits_that_do_not_conflict(other: Edit) -> None:
    assert compose([SHARED, solved("beside", [other], key_of(5))]).manifest.rank >= 2


def test_an_edit_that_cannot_be_taken_out_is_said_to_be_so() -> None:
    facts = [capital("France", "Lyon"), capital("France", "franc", relation="currency")]
    grouped = solved("grouped", facts, key_of(1, 4), groups=[0, 0])
    with pytest.raises(EditError, match=r"loses to own@.*the edits of France in grouped@.* share one key group"):
        compose([grouped, OWN], policy="last")
    assert compose([grouped, OWN], policy="first").manifest.edits == tuple(facts)
    learnt = added("learnt", [capital("France", "Lyon"), capital("Spain", "Seville")])
    with pytest.raises(EditError, match=r"learnt@.* has no factors: its delta cannot be split"):
        compose([learnt, OWN], policy="last")


def test_facts_that_two_members_share_count_once() -> None:
    again = solved("again", [capital("France", "Lyon")], key_of(1))
    composed = compose([again, SHARED])
    assert composed.manifest.rank == 2
    facts = [capital("France", "Lyon"), capital("France", "franc", relation="currency")]
    grouped = solved("grouped", facts, key_of(1, 4), groups=[0, 0])
    learnt = added("learnt", [capital("France", "Lyon"), capital("Peru", "Cusco")])
    with pytest.raises(EditError, match=r"share some facts of .* but not all"):
        compose([grouped, learnt])


def close(composed: CompiledPatch, member: CompiledPatch, key: torch.Tensor) -> bool:
    """True if the composition shifts the key as the member does."""
    return bool((shift(composed, key) - shift(member, key)).norm() < 1e-4 * shift(member, key).norm())


@pytest.mark.parametrize("cosine", [0.0, 0.95])
def test_two_subjects_that_only_share_an_alias_both_keep_their_keys(cosine: float) -> None:
    one, far, group = key_of(1, 2, 3)
    two = cosine * one / one.norm() + (1 - cosine**2) ** 0.5 * far / far.norm()
    members = [
        solved(name, [capital(name, "Lyon", aliases=("the Group",))], key[None], alias=group[None])
        for name, key in (("initech", one), ("contoso", two))
    ]
    for order in (members, members[::-1]):
        composed = compose(order)
        assert (composed.manifest.rank, len(composed.manifest.edits)) == (2, 2)
        assert all(close(composed, member, key) for member, key in zip(members, (one, two), strict=True))
        assert sum(close(composed, member, group) for member in members) == 1, "a common name has one answer"
        assert (vouch(composed) == []) == (cosine == 0.0), "near keys of two subjects are not vouched for"


def test_a_fact_of_two_members_keeps_what_both_declare_in_any_order() -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)
    probe = Probe(kind="portability", prompt="The capital of the Hexagon is", target="Lyon")
    lasting = capital("France", "Lyon").model_copy(update={"target_true": "Paris"})
    ending = Edit(
        prompt="France has the capital", subject="France", relation="capital", aliases=("the Hexagon",),
        target_new="lyon", target_new_aliases=("Lugdunum",), target_true="Paname", probes=(probe,), valid_until=end,
    )  # fmt: skip
    near = key_of(1) + 0.1 * key_of(5)
    without, with_end = solved("without", [lasting], key_of(1)), solved("with", [ending], near, alias=key_of(4))
    composed = compose([without, with_end])
    assert compose([with_end, without]).name == composed.name
    (edit,) = composed.manifest.edits
    assert (composed.manifest.valid_until, composed.manifest.rank) == (end, 1)
    assert edit.aliases == ("the Hexagon",)
    assert set(edit.new_answers) >= {"Lugdunum"}
    assert set(edit.old_answers) == {"Paris", "Paname"}
    assert {(asked.kind, asked.prompt) for asked in edit.probes} == {
        ("portability", "The capital of the Hexagon is"),
        ("paraphrase", lasting.prompt),
    }
    assert close(composed, with_end, key_of(4)[0])
    assert compose([composed, without], composed.manifest.patch).manifest.edits == (edit,), "and has nothing to add"


def test_a_key_that_only_the_other_member_of_a_fact_has_is_edited_too() -> None:
    facts = [capital("France", "Lyon"), capital("France", "franc", relation="currency")]
    grouped = solved("grouped", facts, key_of(1, 4), groups=[0, 0])
    named = solved("named", [capital("France", "Lyon", aliases=("the Hexagon",))], key_of(1), alias=key_of(6))
    composed = compose([grouped, named])
    assert (composed.manifest.rank, composed.manifest.edits[0].aliases) == (1, ("the Hexagon",))
    alone = shift(grouped, key_of(1)[0])
    assert (shift(composed, key_of(6)[0]) - alone).norm() < 1e-4 * alone.norm()
    assert composed.algebra is not None
    assert composed.algebra.constraint_error == pytest.approx(0.0, abs=1e-5)


def test_members_that_contradict_each_other_about_the_answer_of_a_fact_are_refused() -> None:
    new = capital("France", "Lyon").model_copy(update={"target_new_aliases": ("Lugdunum",)})
    old = capital("France", "Lyon").model_copy(update={"target_true": "Lugdunum"})
    with pytest.raises(EditError, match="'lugdunum' is a new answer of one and the current answer of the other"):
        compose([solved("new", [new], key_of(1)), solved("old", [old], key_of(1))])
