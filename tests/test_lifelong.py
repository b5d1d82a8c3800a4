"""The benchmark of lifelong editing: protocols on a tiny model, questions and records on canned answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from benchmarks.lifelong.__main__ import _protocols
from benchmarks.lifelong.answers import Share, asked, perplexity_of
from benchmarks.lifelong.batches import drawn_batches
from benchmarks.lifelong.page import plot, section, spans
from benchmarks.lifelong.places import Place, publisher_of
from benchmarks.lifelong.protocols import Publisher
from benchmarks.lifelong.run import Published, Run, milestones, recorded
from tests.deltas.random_deltas import random_part
from tests.editing.examples import BRAZIL, FRANCE, JAPAN
from tests.memit.examples import ALPHAEDIT, MEMIT, Layered, layered
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.runner import Reading, Request
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent

UPDATE = Delta({"model.layers.1.mlp.down_proj": random_part(64, 96, 2)})
BATCHES = [Patch(name=f"batch-{number:04d}", edits=(edit,)) for number, edit in enumerate((FRANCE, JAPAN, BRAZIL))]
SETTINGS = {
    "memit": MEMIT.replace(damping=0.0, on_missed="report"),
    "sequential": ALPHAEDIT.replace(damping=0.01, null_space=0.5, on_missed="report"),
}


@pytest.fixture(scope="module")
def llama() -> Layered:
    return layered()


def publisher(setup: Layered, protocol: str, folder: Path) -> Publisher:
    return publisher_of(
        protocol, setup.base, Place(setup.site, setup.moments), folder, {"protocol": protocol}, SETTINGS[protocol]
    )


def answers(setup: Layered, delta: Delta) -> list[str]:
    """The word that follows each batch's prompt under an update."""
    found = []
    with delta.apply(setup.base.model), torch.no_grad():
        for batch in BATCHES:
            ids = torch.tensor([setup.base.tokenizer(batch.edits[0].prompt)["input_ids"]])
            found.append(str(setup.base.tokenizer.decode(setup.base.model(ids).logits[0, -1].argmax())).strip())
    return found


@pytest.mark.parametrize("protocol", ["memit", "sequential"])
def test_batches_are_published_one_after_the_other_and_a_stopped_run_resumes(
    protocol: str, llama: Layered, tmp_path: Path
) -> None:
    before = llama.base.state_digest()
    whole = publisher(llama, protocol, tmp_path / "whole")
    assert [whole.publish(batch, silent) for batch in BATCHES] == [0, 0, 0]
    assert answers(llama, whole.delta) == [batch.edits[0].target_new for batch in BATCHES]
    assert llama.base.state_digest() == before
    stopped = publisher(llama, protocol, tmp_path / "stopped")
    for batch in BATCHES[:2]:
        stopped.publish(batch, silent)
    resumed, heard = publisher(llama, protocol, tmp_path / "stopped"), list[str]()
    for batch in BATCHES[:2]:
        resumed.publish(batch, lambda what, done, total: heard.append(what))
    assert not heard, "nothing is compiled again"
    assert resumed.delta.digest == stopped.delta.digest
    resumed.publish(BATCHES[2], silent)
    for module, part in whole.delta.parts.items():
        assert (resumed.delta.parts[module].dense() - part.dense()).norm() < 1e-5 * part.norm()


def test_the_sequential_protocol_computes_on_the_edited_model(llama: Layered, tmp_path: Path) -> None:
    one = publisher(llama, "sequential", tmp_path / "one")
    one.publish(BATCHES[1], silent)
    two = publisher(llama, "sequential", tmp_path / "two")
    two.publish(BATCHES[0], silent)
    first = two.delta
    two.publish(BATCHES[1], silent)
    for module, part in two.delta.parts.items():
        assert torch.equal(part.B[:, :1], first.parts[module].B), "an earlier batch's update stays"
        added = part.B[:, 1:] @ part.A[1:]
        assert (added - one.delta.parts[module].dense()).norm() > 1e-3 * added.norm()


def test_the_state_of_another_run_is_refused(llama: Layered, tmp_path: Path) -> None:
    publisher(llama, "sequential", tmp_path).publish(BATCHES[0], silent)
    with pytest.raises(EditError, match="is of another run; remove it"):
        publisher_of("sequential", llama.base, Place(llama.site, llama.moments), tmp_path, {}, SETTINGS["sequential"])


@dataclass
class Canned:
    """Answers "<prompt> new" under an update and "<prompt> old" without one; counts questions."""

    name: str = "canned"
    context: int = 100
    asked: list[str] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        self.asked += [request.prompt for request in requests if request.patch]
        return ["new" if request.patch and "still" not in request.prompt else "old" for request in requests]

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        return [Reading(1.0 if request.patch else 0.5, 1) for request in requests]


def edit(number: int, neighbour: str = "moves") -> Edit:
    probes = (
        Probe(kind="paraphrase", prompt=f"{number} still otherwise"),
        Probe(kind="locality", prompt=f"{neighbour} {number}"),
    )
    return Edit(prompt=f"Town {number} is", subject=f"Town {number}", relation="", target_new="new", probes=probes)


def test_own_prompts_paraphrases_and_unchanged_neighbours_are_counted_for_the_chosen_edits() -> None:
    runner = Canned()
    edits = [edit(0), edit(1, "still"), edit(2)]
    found = asked(runner, UPDATE, edits, {0, 1})  # type: ignore[arg-type]
    assert found == {"reliability": Share(2, 2), "paraphrase": Share(0, 2), "locality": Share(1, 2)}
    assert not [prompt for prompt in runner.asked if "2" in prompt]
    assert perplexity_of(runner, ["a"], UPDATE) > perplexity_of(runner, ["a"])  # type: ignore[arg-type]


class Listed:
    """Publishes without compiling."""

    def __init__(self) -> None:
        self.delta, self.published = UPDATE, list[str]()

    def publish(self, batch: Patch, progress: Progress) -> int:
        self.published.append(batch.name)
        return len(self.published) % 2


def test_batches_are_asked_at_edit_and_a_sample_of_all_at_milestones(llama: Layered, tmp_path: Path) -> None:
    batches = [Patch(name=f"batch-{number}", edits=(edit(2 * number), edit(2 * number + 1))) for number in range(4)]
    runner = Canned()
    run = Run(llama.base, runner, batches, ["text"], sample=3, seed=1)  # type: ignore[arg-type]
    whole = Record.open(tmp_path / "record.jsonl", {})
    run.published(Listed(), whole, silent)
    found = recorded(whole, 4)
    assert recorded(whole, 3) == found[:3]
    assert [one.edits for one in found] == [2, 4, 6, 8]
    assert [one.at_edit["reliability"] for one in found] == [Share(2, 2)] * 4
    assert [one.so_far is not None for one in found] == [True, True, False, False]
    assert found[1].so_far is not None
    assert found[1].so_far["paraphrase"] == Share(0, 3)
    assert found[1].drift == pytest.approx(torch.tensor(0.5).exp().item() - 1)
    assert found[1].norm is not None
    assert found[1].norm > 0
    runner.asked.clear()
    again = Record.open(tmp_path / "record.jsonl", {})
    run.published(Listed(), again, silent)
    assert recorded(again, 4) == found
    assert not runner.asked


def test_milestones_are_dense_at_first_and_then_every_ten() -> None:
    assert milestones(1) == [1]
    assert milestones(40) == [1, 2, 5, 10, 20, 30, 40]


def test_more_batches_begin_with_the_same_and_no_subject_comes_twice() -> None:
    facts = [edit(number) for number in range(9)] + [edit(3)]
    few, many = drawn_batches(facts, 2, 2, seed=1), drawn_batches(facts, 4, 2, seed=1)
    assert many[:2] == few
    subjects = [one.subject for batch in many for one in batch.edits]
    assert len(set(subjects)) == len(subjects) == 8
    with pytest.raises(EditError, match="5 batches of 2 edits need 10 subjects, the facts have 9"):
        drawn_batches(facts, 5, 2, seed=1)


def published(batches: int, right: int, milestone: bool) -> Published:
    shares = {metric: Share(right, 4) for metric in ("reliability", "paraphrase", "locality")}
    more = {"so_far": shares, "drift": 0.25, "norm": 0.5} if milestone else {}
    return Published(batches, 4 * batches, missed=1, at_edit=shares, **more)  # type: ignore[arg-type]


def test_the_table_counts_the_batches_since_the_line_above_as_at_edit(tmp_path: Path) -> None:
    listed = [published(1, 4, True), published(2, 2, False), published(3, 0, True)]
    assert [[one.batches for one in since] for since, _ in spans(listed)] == [[1], [2, 3]]
    about = {"batches": 3, "size": 4, "model": "m", "prefixed": 2, "null_space": 0.5, "sites": "s", "tokens": 8}
    text = section({**about, "engine": "e", "sample": 9, "passages": 1, "machine": "M."}, {"P": listed})
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| P")]
    assert rows[0][3:] == ["1.000"] * 6 + ["+25.0%", "0.500", "1 of 4 |"]
    assert rows[1][1:3] == ["3", "12"]
    assert rows[1][3:] == ["0.250"] * 3 + ["0.000"] * 3 + ["+25.0%", "0.500", "2 of 8 |"]
    plot({"P": listed}, tmp_path / "picture.svg")
    assert "at edit" in (tmp_path / "picture.svg").read_text()


def test_some_protocols_can_be_chosen_and_others_do_not_exist() -> None:
    assert _protocols("sequential,rome") == ["rome", "sequential"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected protocols among rome, .*, got 'stacked'"):
        _protocols("stacked")
