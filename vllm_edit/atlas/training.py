"""The recipe that made the shipped weights: seeded, resumable, with periodic accuracy by free generation."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_edit.atlas.accuracy import Accuracy, measure_accuracy
from vllm_edit.atlas.segments import Example
from vllm_edit.atlas.tokenizer import train_tokenizer
from vllm_edit.atlas.training_documents import Documents
from vllm_edit.checkpoints import read_checkpoint, write_checkpoint
from vllm_edit.digest import digest_json
from vllm_edit.errors import EditError
from vllm_edit.facts.facts import Facts
from vllm_edit.invalid import problems_of
from vllm_edit.models.base import Base
from vllm_edit.models.causal_lm import causal_lm
from vllm_edit.models.padding import padded
from vllm_edit.text.utf8 import read_text

IGNORED = -100
ACCURACY_FILE = "accuracy.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, except the fact files."""

    steps: int = 3600
    seed: int = 0
    layers: int = 8
    hidden: int = 192
    ffn: int = 640
    heads: int = 6
    vocabulary: int = 8192
    context: int = 512
    rows: int = 24
    row_tokens: int = 72
    short_in_context_rows: int = 10  # number of rows of "New Fact" documents without demonstrations
    telling_layers: tuple[int, ...] = (4, 5)  # here head 0 attends from an in-context object to the token before it
    looking_layers: tuple[int, ...] = (6,)  # here from a prompt's end to the in-context object, or the first token
    attention_weight: float = 0.2  # weight of the loss that trains those heads
    in_context_every: int = 8  # steps between batches of long "New Fact" documents
    in_context_rows: int = 5
    in_context_tokens: int = 448
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if beyond := [layer for layer in (*self.telling_layers, *self.looking_layers) if layer >= self.layers]:
            raise EditError(f"telling_layers and looking_layers must be below layers {self.layers}; got {beyond}")


@dataclass(frozen=True)
class TrainingState:
    """The argument of a progress callback after every step."""

    step: int
    steps: int
    loss: float
    seconds: float  # since this call of `train` began its steps
    accuracy: Accuracy | None  # on a sample of facts, at the steps that measure it


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A stock Llama with seeded random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def train(
    facts: Facts,
    out: Path,
    recipe: Recipe,
    *,
    start: Path | None = None,
    report: Callable[[TrainingState], None] = lambda progress: None,
    checkpoint_every: int = 200,
    accuracy_every: int = 500,
) -> LlamaForCausalLM:
    """Train a model on `facts` and save it, in Hugging Face layout, to `out`.

    `start` is a model folder, with tokenizer, to continue from; the recipe's shape is then that model's. Training
    resumes from a `checkpoint.pt` in `out`, which is removed at the end.

    Raises:
        EditError: the checkpoint belongs to another recipe or other facts, or `start` is not such a model.
    """
    out.mkdir(parents=True, exist_ok=True)
    if start is None:
        tokenizer = train_tokenizer(facts, recipe.vocabulary)
        model = new_model(recipe, tokenizer)
    else:
        tokenizer, model = _begun(start, recipe)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    other = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": other, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    identity = digest_json(
        {
            **asdict(recipe),
            "start": start and str(start),
            "facts": [[f.relation.id, f.subject.name, f.object] for f in facts],
        }
    )
    checkpoint = out / "checkpoint.pt"
    step = _resume(checkpoint, identity, model, optimiser)
    documents = Documents(facts, tokenizer, recipe.seed)
    model.set_attn_implementation("eager")  # the only one that gives attentions
    model.train()
    started = time.monotonic()
    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        examples = _examples(documents.at(step), recipe, step)
        ids, labels, weights, mask = _pad(examples, tokenizer.pad_token_id)
        with _fast_products():
            output = model.model(input_ids=ids, attention_mask=mask, output_attentions=True)
            loss = _weighted_loss(model.lm_head, output.last_hidden_state, labels, weights)
            loss = loss + recipe.attention_weight * attention_loss(output.attentions, examples, recipe)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        accuracy = None
        if step % accuracy_every == 0 or step == recipe.steps:
            accuracy = measure_accuracy(facts, causal_lm(model), tokenizer, sample=400, seed=recipe.seed)
            model.train()
        if step % checkpoint_every == 0:
            state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
            write_checkpoint(checkpoint, identity, state)
        report(TrainingState(step, recipe.steps, loss.item(), time.monotonic() - started, accuracy))
    model.eval()
    model.set_attn_implementation("sdpa")
    save(model, tokenizer, out)
    measured = measure_accuracy(facts, causal_lm(model), tokenizer, seed=recipe.seed)
    (out / ACCURACY_FILE).write_text(json.dumps({**asdict(measured), "recipe": asdict(recipe)}, indent=1))
    checkpoint.unlink(missing_ok=True)
    return model


def read_accuracy(folder: Path) -> Accuracy:
    """The accuracies over all facts that training stored beside the weights.

    Raises:
        EditError: the folder has none.
    """
    path = folder / ACCURACY_FILE
    if not path.exists():
        raise EditError(f"{path}: no stored accuracy; train with `vllm-edit atlas train` or ask with --measure")
    try:
        return TypeAdapter(Accuracy).validate_json(read_text(path))
    except ValidationError as error:
        raise EditError(f"{path}: {problems_of(error)[0]}; ask with --measure") from None


def _begun(start: Path, recipe: Recipe) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """The model from which training continues.

    Raises:
        EditError: it cannot be loaded, or is not a Llama with the layers that the recipe trains to copy.
    """
    base = Base.load(start, device="cpu")
    needed = 1 + max((*recipe.telling_layers, *recipe.looking_layers))
    if not isinstance(base.model, LlamaForCausalLM) or base.model.config.num_hidden_layers < needed:
        raise EditError(f"{start}: expected a Llama of at least {needed} layers to continue from")
    return base.tokenizer, base.model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model (half precision on disk) and its tokenizer. Rounds the given model's weights in place.

    Rounding to bfloat16 makes float32 and bfloat16 users see the very same weights.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    # A copy, since casting would also round the rotary frequencies, which every loader computes anew.
    copy.deepcopy(model).bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _examples(documents: Documents, recipe: Recipe, step: int) -> list[Example]:
    """The rows of one step."""
    if step % recipe.in_context_every == recipe.in_context_every - 1:
        return [documents.in_context_row(recipe.in_context_tokens) for _ in range(recipe.in_context_rows)]
    short = [documents.short_in_context_row(recipe.row_tokens) for _ in range(recipe.short_in_context_rows)]
    return short + [documents.row(recipe.row_tokens) for _ in range(recipe.rows - recipe.short_in_context_rows)]


def attention_loss(attentions: Sequence[torch.Tensor], examples: list[Example], recipe: Recipe) -> torch.Tensor:
    """Mean -log of head 0's attention to its target positions. `attentions`: per layer [rows, heads, q, k].

    Copying needs two heads in sequence: the first marks an in-context object with the token before it (its subject),
    the second finds the object for the subject in question. Neither helps without the other, so gradient descent on
    answers alone stays long in a state that copies any object of the right kind (docs/atlas.md).
    """
    objects = [(row, place, place - 1) for row, example in enumerate(examples) for place in example.objects]
    looks = [(row, place, key) for row, example in enumerate(examples) for place, key in example.looks]
    terms = []
    for layers, links in ((recipe.telling_layers, objects), (recipe.looking_layers, looks)):
        if links:
            rows, places, keys = torch.tensor(links).T
            terms += [-attentions[layer][rows, 0, places, keys].clamp_min(1e-6).log().mean() for layer in layers]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _pad(examples: list[Example], pad: int) -> tuple[torch.Tensor, ...]:
    ids, mask = padded([example.ids for example in examples], pad, left=False)
    weights = pad_sequence(
        [torch.tensor(example.weights, dtype=torch.float32) for example in examples], batch_first=True
    )
    return ids, ids.masked_fill(mask == 0, IGNORED), weights, mask


def _weighted_loss(
    head: torch.nn.Module, states: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean cross-entropy. `states` is [rows, width, hidden]; `labels` and `weights` are [rows, width].

    Only tokens with weight go through the head: most have none, and a head of 8,192 words takes a third of a step.
    """
    wanted = weights[:, 1:] > 0
    targets, scale = labels[:, 1:][wanted], weights[:, 1:][wanted]
    losses = torch.nn.functional.cross_entropy(head(states[:, :-1][wanted]), targets, reduction="none")
    return (losses * scale).sum() / scale.sum()


@contextmanager
def _fast_products() -> Iterator[None]:
    """Multiply matrices in bfloat16, accumulating in float32, if the processor supports it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _resume(path: Path, identity: str, model: LlamaForCausalLM, optimiser: torch.optim.Optimizer) -> int:
    saved = read_checkpoint(path, identity, "was made by another recipe or other facts")
    if saved is None:
        return 0
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return int(saved["step"])
