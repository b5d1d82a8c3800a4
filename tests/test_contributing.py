"""The examples of CONTRIBUTING.md run as written: a method, two routes and a migration, with their tests."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import textwrap
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import httpx
import pytest
import torch
from alembic.script import ScriptDirectory

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, Bench, bench, patch_of
from tests.serving import places
from tests.serving.test_admin import Administered
from tests.serving.without_engine import make_app
from vllm_edit.editing import compile as compiling
from vllm_edit.editing.method import Method
from vllm_edit.errors import EditError
from vllm_edit.models.base import unchanged
from vllm_edit.registry import migrations
from vllm_edit.serving import router
from vllm_edit.serving.admin import authorization, dependencies

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """The fenced block of the page under the mark `<!-- example: NAME -->`."""
    (text,) = re.findall(rf"^<!-- example: {name} -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def imported(text: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module of that name, for the length of a test."""
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"contributing_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example's method among the methods, by the line that the page gives; its name."""
    module = imported(example("method"), "squares", tmp_path, monkeypatch)
    entry: dict[str, Method[Any]] = eval(f"{{{example('entry')}}}", {"Method": Method, "squares": module})
    monkeypatch.setattr(compiling, "METHODS", MappingProxyType({**compiling.METHODS, **entry}))
    (name,) = entry
    return name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_method_compiles_edits_to_their_rank_and_leaves_the_base(registered: str, family: str) -> None:
    setup, edits = bench(family), (FRANCE, JAPAN, BRAZIL)

    def answers() -> list[str]:
        found = []
        for edit in edits:
            ids = torch.tensor([setup.base.tokenizer(edit.prompt)["input_ids"]])
            with torch.no_grad():
                found.append(str(setup.base.tokenizer.decode(setup.base.model(ids).logits[0, -1].argmax())).strip())
        return found

    before = answers()
    with unchanged(setup.base):
        compiled = compiling.compile_patch(
            patch_of(*edits), setup.base, registered, site=setup.site, site_tensors=setup.moment
        )
    assert (compiled.manifest.method, compiled.delta.rank) == (registered, len(edits))
    with compiled.delta.apply(setup.base.model):
        assert answers() == [edit.target_new for edit in edits]
    assert answers() == before


def test_the_method_refuses_more_edits_than_ranks(registered: str) -> None:
    setup: Bench = bench()
    with pytest.raises(EditError, match="at most 2 edits, one for each rank, got 3"):
        compiling.compile_patch(
            patch_of(FRANCE, JAPAN, BRAZIL),
            setup.base,
            registered,
            site=setup.site,
            site_tensors=setup.moment,
            settings={"rank": 2},
        )


def test_the_method_is_short() -> None:
    assert len(example("method").splitlines()) < 60


def test_the_routes_answer_authorized_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = places.make_store(tmp_path / "template", places.make_site(places.make_model(tmp_path / "model")))
    names = [places.add_patch(store, patch, seed) for seed, patch in enumerate(("capital", "city"))]
    store.registry.create_tenant("acme")
    store.registry.publish("acme", names[0])
    store.registry.close()
    place = Administered(tmp_path, tmp_path / "template")

    case = textwrap.indent(example("authorization"), "    ")
    known: dict[str, Any] = {"PREFIX": authorization.PREFIX, "admitted": authorization.admitted}
    exec(f"def also(method, path, caller, snapshot):\n{case}    return admitted(method, path, caller, snapshot)", known)
    monkeypatch.setattr(router, "admitted", known["also"])
    app = make_app(place.holder)
    routes = imported(example("route"), "generation", tmp_path, monkeypatch).routes
    app.include_router(routes(dependencies.Dependencies(place.holder)))
    place.client._transport = httpx.ASGITransport(app)

    run_tests(imported(example("route test"), "test_generation", tmp_path, monkeypatch), place=place)


def run_tests(module: ModuleType, **fixtures: Any) -> None:
    """Run the one test of an example."""
    (test,) = [test for name, test in vars(module).items() if name.startswith("test_")]
    test(**fixtures)


def test_the_migration_keeps_a_registrys_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_one_more = shutil.copytree(Path(migrations.__file__).parent, tmp_path / "migrations")
    newest = ScriptDirectory(str(with_one_more)).get_current_head()
    text, test = (  # the page's numbers are those of the day on which it was written
        example(name).replace('"0007"', '"example"').replace('"0006"', f'"{newest}"')
        for name in ("migration", "migration test")
    )
    (with_one_more / "versions" / "example.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(migrations, "__file__", str(with_one_more / "__init__.py"))
    module = imported(test, "test_notes", tmp_path, monkeypatch)
    run_tests(module, registry_url=f"sqlite:///{tmp_path / 'registry.db'}")
