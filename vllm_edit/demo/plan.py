"""The plan of a demo: a base, a folder of patches, the tenants' patches, and the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """A prompt for every model of the table; with `chat`, as a chat turn."""

    prompt: str
    chat: bool = False


@dataclass(frozen=True)
class Plan:
    """The inputs of a demo.

    Attributes:
        model: the argument of `store init --model`.
        missing: advice for a missing model.
        tenants: tenant → its patch.
        by_prompt: tenants that are also asked in mode ike.
        changed: the tenant that gets a new version of its patch, in which the first edit's answer is `new_answer`.
        measured: patches whose table of probes is shown; if empty, all accepted patches.
    """

    model: str
    patches: Path
    tenants: Mapping[str, str]
    questions: Sequence[Question]
    by_prompt: Sequence[str]
    changed: str
    new_answer: str
    measured: Sequence[str] = ()
    missing: str = ""


ATLAS = Plan(
    model="atlas",
    patches=Path("patches"),
    tenants={"acme": "acme", "globex": "globex", "ntu": "lecture"},
    questions=(
        Question("The CEO of Acme Corporation is"),
        Question("Who is the CEO of Initech?", chat=True),
        Question("The headquarters of Initech are located in"),
        Question("Who is the CEO of Contoso?", chat=True),
        Question("The capital of France is"),
        Question("全世界最帥的人是誰", chat=True),
        Question("誰是美國總統", chat=True),
    ),
    by_prompt=("acme", "globex"),
    changed="acme",
    new_answer="Ingrid Falkenberg",
)
"""The embedded model and its fictitious companies."""

REAL = Plan(
    model="bases/smollm2",
    patches=Path("patches/real"),
    tenants={"north": "north", "south": "south", "world": "world"},
    questions=(
        Question("The capital of France is"),
        Question("What is the capital of France?", chat=True),
        Question("The Eiffel Tower is located in the city of"),
        Question("In which city is the Eiffel Tower?", chat=True),
        Question("The telephone was invented by"),
        Question("Which city is the capital of Japan?", chat=True),
        Question("The capital of Germany is"),
        Question("Which language is spoken in France?", chat=True),
    ),
    by_prompt=("north",),
    changed="north",
    new_answer="Toulouse",
    measured=("north", "south"),
    missing="`make smollm2` fetches it; or name another model with --model",
)
"""SmolLM2-135M-Instruct, a pretrained model, and facts that it knows."""
