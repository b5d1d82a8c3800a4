"""atlas: the embedded base model, its facts and the recipe that trained it. Everything heavy is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_edit.edit import Edit
    from vllm_edit.ike.bank import Fact


def sweep_edits(seed: int = 0, count: int = 24) -> list[Edit]:
    """Counterfactual edits for choosing site, damping and settings only."""
    from vllm_edit.facts import counterfactual_edits

    return counterfactual_edits.sweep_edits(seed, count)


def texts(count: int = 2000, seed: int = 1) -> list[str]:
    """Documents like atlas's training documents, drawn with another seed, for second moments."""
    from vllm_edit.atlas.training_documents import held_out_texts

    return held_out_texts(count, seed)


def passages() -> list[str]:
    """Documents of the same kind, drawn with a third seed, on which a store's gates measure the perplexity drift."""
    from vllm_edit.store.gate_texts import cut

    return cut(texts(seed=3))


def bank() -> list[Fact]:
    """Every fact, for IKE's bank."""
    from vllm_edit.facts import tables_folder
    from vllm_edit.facts.facts import Facts
    from vllm_edit.ike.bank import Fact

    return [
        Fact(
            prompt=fact.relation.trained[0].fill(fact.subject.name),
            subject=fact.subject.name,
            relation=fact.relation.id,
            object=fact.object,
            paraphrases=tuple(form.fill(fact.subject.name) for form in fact.relation.trained[1:]),
        )
        for fact in Facts.load(tables_folder())
    ]
