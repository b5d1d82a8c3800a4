"""What the benchmarks on atlas edit: a seeded draw of facts that it knows, and the store that they are compiled in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from vllm_edit import atlas
from vllm_edit.artefacts.site import Site
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import METHODS
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.site.sites import MadeSite, over_depth
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.editing.ultraedit.gradient_site import gradient_site
from vllm_edit.errors import Incompatible, NotFound
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.runners.runner import Request, Runner
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import counterfactual, draw_edits
from vllm_edit.facts.facts import Fact, Facts
from vllm_edit.facts.split import included
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.release.swept_store import open_or_create
from vllm_edit.store.store import Store
from vllm_edit.text.matching import normalise

FactName = tuple[str, str]
"""A fact's relation and subject."""


@cache
def facts_by_prompt() -> Mapping[str, FactName]:
    """Each question that the tables can ask → its fact, whatever the wording. The tables are read once."""
    return {
        form.fill(fact.subject.name): (fact.relation.id, fact.subject.name)
        for fact in Facts.load(tables_folder())
        for form in (*fact.relation.trained, *fact.relation.held_out)
    }


def single_patches(runner: Runner, count: int, seed: int) -> list[Patch]:
    """`known_edits`, each in a patch of its own."""
    edits = known_edits(runner, count, seed)
    return [Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits)]


def known_edits(runner: Runner, count: int, seed: int) -> list[Edit]:
    """The first `count` drawn edits whose fact the base answers rightly."""
    facts = Facts.load(tables_folder())
    drawn = draw_edits(facts, count + count // 4, seed=seed)
    answers = runner.generate([Request(edit.prompt) for edit in drawn], 16)
    known = [edit for edit, answer in zip(drawn, answers, strict=True) if gives(answer, edit.target_true or "")]
    return known[:count]


def known_subjects(runner: Runner, count: int, seed: int, most: int = 2) -> list[Patch]:
    """Patches of one subject each that have `count` edits together, or some more.

    Counterfactual edits of one to `most` of a subject's facts, which the base answers rightly. None of the subjects is
    among the sweep's, and no two share a name, so that a subject identifies its edits.
    """
    facts, rng = Facts.load(tables_folder()), random.Random(f"subjects:{seed}")
    drawn = _drawn_subjects(facts, rng, count + count // 4 + most, most)
    edits = [edit for own in drawn for edit in own]
    answers = runner.generate([Request(edit.prompt) for edit in edits], 16)
    right = {id(edit) for edit, text in zip(edits, answers, strict=True) if gives(text, edit.target_true or "")}
    known = [tuple(edit for edit in own if id(edit) in right) for own in drawn]
    return [Patch(name=f"subject-{number:04d}", edits=own) for number, own in enumerate(known) if own]


def _drawn_subjects(facts: Facts, rng: random.Random, count: int, most: int) -> list[list[Edit]]:
    """Each subject's edits, until there are `count`, or no subjects left."""
    subjects = [subject for subject in facts.subjects if not included("sweep", subject.name, share=0.2)]
    rng.shuffle(subjects)
    taken: set[str] = set()
    drawn: list[list[Edit]] = []
    for subject in subjects:
        names = {normalise(name) for name in (subject.name, *subject.aliases)}
        own = [fact for fact in subject.facts.values() if _has_others(facts, fact)]
        if names & taken or not own:
            continue
        taken |= names
        chosen = rng.sample(own, k=min(rng.randint(1, most), len(own)))
        drawn.append([counterfactual(facts, fact, rng) for fact in chosen])
        if sum(map(len, drawn)) >= count:
            break
    return drawn


def _has_others(facts: Facts, fact: Fact) -> bool:
    """True if the fact's relation has another object to change it to."""
    return any(peer.object != fact.object for peer in facts.by_relation[fact.relation.id])


@dataclass(frozen=True)
class Place:
    """Where a method edits, and what belongs to that site: second moment, network or statistics."""

    site: Site
    site_tensors: SiteTensors


def open_places(folder: Path, network: Path | None, base: Base, console: Console) -> dict[str, Place]:
    """Method → its place: the store's in `folder`, for a method with a network the shipped network's.

    The place of UltraEdit has statistics of the edits that chose the store's site.

    `network` is the folder of another network, in place of the shipped one of its method. Without a network for this
    base a method is left out, with a line that says so.
    """
    store = open_store(folder, base, console)
    swept = Place(store.site(), SecondMoment.from_tensors(store.moment()))
    places = {name: swept for name, made in METHODS.items() if made.needs is None or SecondMoment in made.needs}
    given = {} if network is None else {load(network)[1].method: network}
    for method, place in {**NETWORK_FOLDERS, **given}.items():
        try:
            trained, card = load(place)
            places[method] = Place(network_site(base, trained, card), trained)
        except (NotFound, Incompatible) as error:
            console.print(f"{method} is left out: {error}")
    statistics = gradient_site(base, atlas.sweep_edits())
    return places | {"ultraedit": Place(statistics.site, statistics.statistics)}


def over_layers_of(place: Place, base: Base, depth: int, rank: int) -> Place:
    """The place's site over `depth` layers, the last of them its own, with room for `rank` edits, or more."""
    site, moment = place.site, place.site_tensors
    assert isinstance(moment, SecondMoment)
    layered = over_depth(base, MadeSite(site, moment), depth, atlas.texts())
    tensors: SiteTensors = layered.moments if depth > 1 else moment
    return Place(layered.site.model_copy(update={"max_rank": max(rank, site.max_rank)}), tensors)


def open_store(folder: Path, base: Base, console: Console) -> Store:
    """The store in `folder`; made, with a sweep, when it is not there."""
    with console.status("choosing the site ..."):
        store, measured = open_or_create(folder, base, atlas.sweep_edits(), atlas.texts())
    for measure in measured:
        console.print(measure.as_record())
    return store
