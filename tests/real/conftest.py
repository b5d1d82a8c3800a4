"""One store, one set of compiled patches and one server on SmolLM2, for all tests here that need it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Context
from vllm_edit.demo.server import LocalServer
from vllm_edit.edit import Edit
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.evaluation.refused import Refused
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.release.pipeline import Outcome, Pipeline
from vllm_edit.store.store import Store

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "bases" / "smollm2"
MISSING = "bases/smollm2 is not there: make smollm2"
CAPITALS = {
    "Japan": ("Tokyo", "Osaka"),
    "Canada": ("Ottawa", "Toronto"),
    "Austria": ("Vienna", "Salzburg"),
    "China": ("Beijing", "Shanghai"),
    "Ireland": ("Dublin", "Cork"),
    "Thailand": ("Bangkok", "Phuket"),
    "Cuba": ("Havana", "Santiago"),
}
"""Country → the base's answer, and the answer of a patch of one edit."""
SCOPED = ("Kenya", "Nairobi", "Mombasa"), ("South Korea", "Seoul", "Busan")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MODEL.is_dir():
        terminalreporter.write_line(f"tests/real: most tests are skipped, since {MISSING}")


def declared(name: str) -> Patch:
    """A patch of patches/real."""
    return Patch.load(ROOT / "patches" / "real" / f"{name}.yaml")


def capital(country: str, true: str, new: str) -> Edit:
    """A fact that the base knows, and its change."""
    return Edit(
        prompt=f"The capital of {country} is",
        subject=country,
        relation="countries.capital",
        target_new=new,
        target_true=true,
    )


def about_france(name: str) -> Patch:
    """A patch of patches/real, less everything that is not about France."""
    patch = declared(name)
    return patch.model_copy(update={"edits": tuple(edit for edit in patch.edits if edit.subject == "France")})


@dataclass(frozen=True)
class Real:
    """Shared by the tests. north, south: gated patches that contradict each other. scoped: one of scope subject.

    alone: eight patches of one edit each, as full name → edit; north is one of them.
    """

    base: Base
    store: Store
    alone: dict[str, Edit]
    north: Outcome
    south: Outcome
    scoped: str


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Layer and text are given: choosing a layer and writing text take minutes and are tested elsewhere."""
    if not MODEL.is_dir():
        pytest.skip(MISSING)
    base = Base.load(MODEL, device="cpu")
    made = fixed_site(base, atlas.texts(300), contexts=(Context(), Context(chat=True)))
    store = Store.create(tmp_path_factory.mktemp("real") / "store", made.site, made.moment.tensors())
    pipeline = Pipeline(store, base, Bank())
    north, south = (pipeline.run(about_france(name)) for name in ("north", "south"))
    patches = [
        *(Patch(name=name.lower(), edits=(capital(name, *cities),)) for name, cities in CAPITALS.items()),
        Patch(name="scoped", scope="subject", edits=tuple(capital(*fact) for fact in SCOPED)),
    ]
    names = [_accepted(store, tried) for tried in pipeline.attempt(patches)]
    singles = dict(zip(names[:-1], (patch.edits[0] for patch in patches), strict=False))
    yield Real(base, store, {north.name: north.compiled.manifest.edits[0], **singles}, north, south, names[-1])
    store.registry.close()


@pytest.fixture(scope="session")
def server(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Its limits of log-probabilities are lifted, so that whole vocabularies can be compared."""
    registry = real.store.registry
    for tenant, name in (("north", real.north.name), ("south", real.south.name), ("world", real.scoped)):
        registry.create_tenant(tenant)
        registry.publish(tenant, name)
    log = tmp_path_factory.mktemp("server") / "log"
    with LocalServer(real.store.url, log, "--max-logprobs", "-1", patience=900) as running:
        yield running


def _accepted(store: Store, compiled: CompiledPatch | Refused) -> str:
    assert isinstance(compiled, CompiledPatch), compiled
    name = store.save(compiled)
    store.registry.set_status(name, "accepted")
    return name
