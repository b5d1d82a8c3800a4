"""Conflicts: edits of one fact with different targets in different members. Refused until a policy names the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.edit import Edit, Fact
from vllm_edit.errors import EditError
from vllm_edit.frozen import Frozen
from vllm_edit.json_value import JSONObject
from vllm_edit.names import resolve, short
from vllm_edit.text.quoting import change, quoted

FIRST, LAST = "first", "last"
"""Policies: the member given first, or last, wins; any other policy is the name of the member that wins."""

Place = tuple[int, int]
"""(member, edit), both indices."""


class DecidedConflict(Frozen):
    """A decided conflict in the settings of a composition's manifest.

    Attributes:
        left_out: name of the member whose edit is left out.
        prompt: prompt of that edit.
        target: new target of that edit.
        winner: name of the member whose edit stays.
        kept_target: new target of the edit that stays.
    """

    left_out: str
    prompt: str
    target: str
    winner: str
    kept_target: str


_DECIDED = TypeAdapter(tuple[DecidedConflict, ...])


def decided_conflicts(composition: Manifest) -> tuple[DecidedConflict, ...]:
    """The conflicts that a policy decided in this composition; empty for any other patch."""
    return _DECIDED.validate_python(composition.settings.get("left_out") or ())


@dataclass(frozen=True)
class Conflict:
    """Two edits of one fact with different targets. `winner` and `loser` are members' names.

    Until a policy decides, the winner is the member that was given first.
    """

    winner: str
    loser: str
    kept: Edit
    left_out: Edit

    def as_decided(self) -> DecidedConflict:
        """The manifest's record, once a policy has decided."""
        return DecidedConflict(
            left_out=self.loser,
            prompt=self.left_out.prompt,
            target=self.left_out.target_new,
            winner=self.winner,
            kept_target=self.kept.target_new,
        )

    def __str__(self) -> str:
        same = self.kept.prompt == self.left_out.prompt
        left = self.left_out
        other = quoted(left.target_new) if same else change(left.prompt, left.target_new)
        return (
            f"{change(self.kept.prompt, self.kept.target_new)} in {short(self.winner)}, {other} in {short(self.loser)}"
        )


@dataclass(frozen=True)
class Settlement:
    """Edits that the composition leaves out, the conflict that excludes each, and the policy.

    A policy that names a member holds the member's full name.
    """

    leaving: Mapping[Place, Conflict]
    policy: str | None = None

    def settings(self) -> JSONObject:
        """The manifest's record, independent of the members' order; empty without conflicts."""
        conflicts = (conflict.as_decided().model_dump() for conflict in self.leaving.values())
        records = sorted(conflicts, key=lambda record: sorted(record.items()))
        return {"policy": self.policy, "left_out": records} if records else {}


def find_conflicts(members: Sequence[CompiledPatch]) -> list[Conflict]:
    """Every pair of conflicting edits, in the members' order."""
    return [_conflict(members, first, second) for first, second in _pairs(members)]


def settle(members: Sequence[CompiledPatch], policy: str | None = None) -> Settlement:
    """Choose the edits to leave out so that no fact has two targets.

    Args:
        members: the compiled patches.
        policy: `first`: edits of members given earlier win; `last`: edits of members given later win; a member's name
            (or patch, or start of its digest): its edits win, and no other conflict may remain. An edit that is itself
            left out excludes no other.

    Raises:
        EditError: conflicts that the policy does not decide, one line each.
        NotFound: the policy names none of the members.
    """
    order = list(range(len(members)))
    winners = {*order} if policy in (FIRST, LAST) else set[int]()
    if policy == LAST:
        order.reverse()
    elif policy not in (None, FIRST):
        policy = resolve(policy, [member.name for member in members])
        winners = {place for place in order if members[place].name == policy}
        order.sort(key=lambda place: place not in winners)
    pairs = _pairs(members)
    if not pairs:
        return Settlement({})
    rank = {member: place for place, member in enumerate(order)}
    rivals: dict[Place, list[Place]] = {}
    for pair in pairs:
        winner, loser = sorted(pair, key=lambda place: rank[place[0]])
        rivals.setdefault(loser, []).append(winner)
    leaving: dict[Place, Conflict] = {}
    undecided: list[Conflict] = []
    for loser in sorted(rivals, key=lambda place: (rank[place[0]], place[1])):
        standing = sorted(
            (winner for winner in rivals[loser] if winner not in leaving), key=lambda place: rank[place[0]]
        )
        conflicts = [_conflict(members, winner, loser) for winner in standing]
        if any(winner[0] in winners for winner in standing):
            leaving[loser] = conflicts[0]
        else:
            undecided += conflicts
    if undecided:
        advice = "decide with policy first, last, or the name of the member that wins; the losing edit is left out"
        raise EditError("\n".join([*(f"conflict: {conflict}" for conflict in undecided), advice]))
    return Settlement(leaving, policy)


def _conflict(members: Sequence[CompiledPatch], winner: Place, loser: Place) -> Conflict:
    return Conflict(members[winner[0]].name, members[loser[0]].name, _edit(members, winner), _edit(members, loser))


def _pairs(members: Sequence[CompiledPatch]) -> list[tuple[Place, Place]]:
    """Places of conflicting edits, each pair once. Edits of one member never conflict: a gate judged them together."""
    seen: dict[Fact, list[Place]] = {}
    found: dict[tuple[Place, Place], None] = {}
    for number, member in enumerate(members):
        for index, edit in enumerate(member.manifest.edits):
            for fact in sorted(edit.facts()):
                for earlier in seen.setdefault(fact, []):
                    if earlier[0] != number and not edit.agrees_with(_edit(members, earlier)):
                        found[earlier, (number, index)] = None
                seen[fact].append((number, index))
    return list(found)


def _edit(members: Sequence[CompiledPatch], place: Place) -> Edit:
    return members[place[0]].manifest.edits[place[1]]
