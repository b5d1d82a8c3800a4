"""Training a hypernetwork (MEND, arXiv 2110.11309, §3.3, Algorithm 1), resumable, with early stopping.

In each step, for edits (prompt x, new answer y) and their rephrasings x':

    L = c_edit · mean NLL(y | x'; θ')  +  c_loc · mean KL(p_θ ‖ p_θ') on preserved prompts and unrelated text,

θ' = θ + g(∇_θ NLL(y | x; θ)). The gradient is taken on the edit's prompt and the loss on its *rephrasings*, so that
the network learns to generalise; θ itself never changes. The method's `Objective` sets both weights in every step.
Departures: KL is also taken on neighbours (same relation, other subject) and on other facts about the edit's subject,
because evaluation measures locality there, and on the continuation of the new answer.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_edit.checkpoints import read_checkpoint, write_checkpoint
from vllm_edit.digest import digest_json
from vllm_edit.edit import Edit
from vllm_edit.editing.hypernetworks.dataset import Drawn, Example, draw, split, text_rows, without_held_out
from vllm_edit.editing.hypernetworks.hypernetwork import Factors, Hypernetwork
from vllm_edit.editing.hypernetworks.loss import Outcomes, blocks_below, run
from vllm_edit.editing.hypernetworks.network_method import NetworkMethod
from vllm_edit.editing.hypernetworks.training_settings import TrainingSettings
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.rows import Row
from vllm_edit.models.stored_states import stored_states

CHECKPOINT = "checkpoint.pt"
_VALIDATED = {"taught": 4, "kept": 6}
"""Rows of each edit in a validation."""


@dataclass(frozen=True)
class Validation:
    """The loss and success rates on subjects that are not trained on.

    edited, taught: share of the edits' own prompts, and of all rephrasings, that get the new answer.
    kept: share of preserved rows on which every token is the base's.
    """

    loss: float
    edited: float
    taught: float
    kept: float


@dataclass(frozen=True)
class TrainedNetwork:
    """The network with the lowest validation loss. stopped: steps made, fewer than `steps` after early stopping."""

    network: Hypernetwork[Any]
    step: int
    validation: Validation
    stopped: int


@dataclass(frozen=True)
class NetworkTrainingState:
    """The losses of a step, and the validation after it, if any.

    best: the network after this step, if no earlier validation had a lower loss. The next step changes it in place.
    """

    step: int
    steps: int
    teach_loss: float
    keep_loss: float
    validation: Validation | None = None
    best: TrainedNetwork | None = None


def train(
    method: NetworkMethod[Any, Any],
    base: Base,
    modules: Sequence[str],
    edits: Sequence[Edit],
    texts: Sequence[str],
    settings: TrainingSettings,
    out: Path,
    report: Callable[[NetworkTrainingState], None] = lambda progress: None,
) -> TrainedNetwork:
    """Train a network for the matrices `modules` of `base`; resume from the checkpoint in `out`, if there is one.

    The same arguments give the same network, even after an interruption. The base is not changed. Probes tagged
    `held_out` are neither trained nor validated on.

    Raises:
        EditError: the checkpoint belongs to other data, another base or other settings; or there are too few edits.
    """
    out.mkdir(parents=True, exist_ok=True)
    run_ = _Run(method, base, modules, edits, texts, settings)
    run_.load(out / CHECKPOINT)
    unchanged = blocks_below(base, modules)
    with (
        fast_products([base.model] if settings.fast_products else []),
        stored_states(base.model, unchanged, settings.stored_tokens),
    ):
        while not run_.finished:
            progress = run_.advance()
            if progress.validation is not None:
                run_.save(out / CHECKPOINT)
            report(progress)
    return run_.result()


class _Run:
    """A training run: its constants, and the state that a checkpoint holds."""

    def __init__(
        self,
        method: NetworkMethod[Any, Any],
        base: Base,
        modules: Sequence[str],
        edits: Sequence[Edit],
        texts: Sequence[str],
        settings: TrainingSettings,
    ) -> None:
        self.base, self.settings = base, settings
        edits = without_held_out(edits)
        training, held = split(edits, settings.validation, settings.seed)
        self.training = training
        self._examples: dict[int, Example] = {}
        self.texts = text_rows(texts, base.tokenizer)
        half = len(self.texts) // 2
        rng = random.Random(f"validated:{settings.seed}")
        judged = [Example.of(edit, base.tokenizer) for edit in rng.sample(held, k=min(settings.validated, len(held)))]
        self.validation = draw(judged, self.texts[:half], rng, unrelated=len(judged), **_VALIDATED)
        if not _own(self.validation):  # few edits: perhaps no sampled row is an edit's own prompt, as `edited` needs
            self.validation.taught.extend(self.validation.inner)
        self.texts = self.texts[half:]
        self.network: Hypernetwork[Any] = method.new_network(base, modules, settings)
        self.optimiser = torch.optim.Adam(method.parameter_groups(self.network, settings))
        self.full_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.objective = method.objective(settings)
        self.step = 0
        self.best: tuple[Validation, int, dict[str, torch.Tensor]] | None = None
        data = [edit.model_dump(mode="json") for edit in edits]
        self.identity = digest_json([base.fingerprint.digest, list(modules), data, list(texts), settings.lasting()])

    @property
    def finished(self) -> bool:
        waited = self.step - (self.best[1] if self.best else 0)
        return self.step >= self.settings.steps or waited >= self.settings.patience * self.settings.validate_every

    def advance(self) -> NetworkTrainingState:
        """Make one step, then a validation if it is due."""
        if self.step == 0:
            self._warm()
        self.network.train()
        drawn = self._drawn(self.step)
        inputs = self._inputs(drawn)
        self.network.observe(inputs)
        factors = self.network(inputs)
        leaves = {name: (A.detach().requires_grad_(), B.detach().requires_grad_()) for name, (A, B) in factors.items()}
        outcomes = self._outcomes(leaves, drawn, learns=True)
        self.optimiser.zero_grad(set_to_none=True)
        outputs = [factor for pair in factors.values() for factor in pair]
        torch.autograd.backward(outputs, [leaf.grad for pair in leaves.values() for leaf in pair])
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        share = self._share_of_rates()
        for group, rate in zip(self.optimiser.param_groups, self.full_rates, strict=True):
            group["lr"] = share * rate
        self.optimiser.step()
        self.step += 1
        weighted = self._weighted(*outcomes)
        self.objective.stepped(_means(*outcomes)[1])
        validation = None
        if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
            validation = self._validate()
        best = None
        if validation is not None and better(validation, self.best[0] if self.best else None):
            self.best = validation, self.step, copy.deepcopy(self.network.state_dict())
            best = TrainedNetwork(self.network, self.step, validation, self.step)
        return NetworkTrainingState(self.step, self.settings.steps, *weighted, validation, best)

    def result(self) -> TrainedNetwork:
        if self.best is None:
            raise EditError(
                f"no validation in {self.step} steps had a finite loss: lower rate (and alpha_rate), or the clip, and "
                "train into another --out"
            )
        validation, step, state = self.best
        self.network.load_state_dict(state)
        return TrainedNetwork(self.network.eval(), step, validation, self.step)

    def save(self, path: Path) -> None:
        state = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        best = (asdict(self.best[0]), *self.best[1:]) if self.best else None
        write_checkpoint(path, self.identity, {"best": best, "objective": self.objective.state(), **state})

    def load(self, path: Path) -> None:
        saved = read_checkpoint(path, self.identity, "is of other data, base or settings")
        if saved is None:
            return
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.objective.load(saved.get("objective", {}))  # a checkpoint from before there were objectives has none
        self.step = int(saved["step"])
        if saved["best"]:
            self.best = Validation(**saved["best"][0]), *saved["best"][1:]

    def _share_of_rates(self) -> float:
        """Share of the full learning rates in this step: a cosine decay to a twentieth."""
        done = self.step / self.settings.steps
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))

    def _warm(self) -> None:
        """Initialise the running statistics before the first step, so that inputs are normalised from the start."""
        self.network.train()
        rng = random.Random(f"warm:{self.settings.seed}")
        chosen = self._chosen(rng, self.settings.warm)
        self.network.observe(self._inputs(draw(chosen, [], rng, taught=0, kept=0, unrelated=0)))

    def _drawn(self, step: int) -> Drawn:
        """The data of a step. They depend only on the seed and the step, so that a run can be resumed."""
        settings, rng = self.settings, random.Random(f"{self.settings.seed}:{step}")
        chosen = self._chosen(rng, settings.edits)
        counts = {"taught": settings.taught, "kept": settings.kept, "unrelated": settings.texts}
        return draw(chosen, self.texts, rng, **counts)

    def _chosen(self, rng: random.Random, count: int) -> list[Example]:
        """`count` sampled training edits as rows; an edit's rows are made when it is first sampled."""
        numbers = rng.sample(range(len(self.training)), k=min(count, len(self.training)))
        for number in numbers:
            if number not in self._examples:
                self._examples[number] = Example.of(self.training[number], self.base.tokenizer)
        return [self._examples[number] for number in numbers]

    def _inputs(self, drawn: Drawn) -> Any:
        return self.network.inputs(self.base, drawn.edits, drawn.inner, self.settings.batch_tokens)

    def _outcomes(self, factors: Factors, drawn: Drawn, *, learns: bool) -> tuple[Outcomes, Outcomes, Outcomes]:
        """(taught, kept, texts). With `learns`, the gradient of the loss is added to the factors' `grad`."""
        teach_weight, keep_weight = self.objective.weights

        def outcome(rows: list[Row], nll: float, divergence: float, *, compared: bool) -> Outcomes:
            share = 1 / max(1, len(rows)) if learns else 0.0
            weights = {"nll_weight": nll * share, "divergence_weight": divergence * share}
            return run(self.base, factors, rows, self.settings.batch_tokens, **weights, compared=compared)

        return (
            outcome(drawn.taught, teach_weight, 0.0, compared=False),
            outcome(drawn.kept, 0.0, keep_weight, compared=True),
            outcome(drawn.texts, 0.0, keep_weight, compared=True),
        )

    def _weighted(self, taught: Outcomes, kept: Outcomes, texts: Outcomes) -> tuple[float, float]:
        """(weighted NLL, weighted KL)."""
        (teach_weight, keep_weight), (nll, divergence) = self.objective.weights, _means(taught, kept, texts)
        return teach_weight * nll, keep_weight * divergence

    @torch.no_grad()
    def _validate(self) -> Validation:
        self.network.eval()
        drawn = self.validation
        taught, kept, texts = self._outcomes(self.network(self._inputs(drawn)), drawn, learns=False)
        own, (nll, divergence) = _own(drawn), _means(taught, kept, texts)
        self.objective.validated(divergence)
        return Validation(
            loss=self.objective.loss(nll, divergence),
            edited=_share(taught.lead[own] > 0),
            taught=_share(taught.lead > 0),
            kept=_share(kept.same),
        )


def _means(taught: Outcomes, kept: Outcomes, texts: Outcomes) -> tuple[float, float]:
    """(mean NLL, mean KL on preserved rows plus mean KL on texts); the mean over no rows is 0."""
    return _mean(taught.nll), _mean(kept.divergence) + _mean(texts.divergence)


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _share(hits: torch.Tensor) -> float:
    return float(hits.float().mean())


def _own(drawn: Drawn) -> list[int]:
    """Indices of the taught rows that are an edit's own prompt."""
    return [place for place, row in enumerate(drawn.taught) if row.ids == drawn.inner[row.edit].ids]


def better(found: Validation, best: Validation | None) -> bool:
    """True if `found` has a lower loss than `best`. A non-finite loss is never better: nothing compares below NaN."""
    return math.isfinite(found.loss) and (best is None or found.loss < best.loss)
