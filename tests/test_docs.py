"""README and docs agree with the code: commands, options, links, patches, Python, routes, variables, settings."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from typer.main import get_command

from benchmarks import methods
from vllm_edit.cli import app
from vllm_edit.editing.compile import METHODS
from vllm_edit.editing.method_settings import MethodSettings
from vllm_edit.errors import PatchError
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Patch
from vllm_edit.rollout.limit import Action
from vllm_edit.rollout.rollout import Verb
from vllm_edit.text.yaml_document import YamlDocument

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "vllm_edit").rglob("README.md"),
    ]
)
PATCHES = sorted((ROOT / "patches").glob("*.yaml"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SHELL = ("bash", "sh", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `before` is the line of text above it."""

    page: Path
    line: int
    language: str
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                above = text[: match.start()].rstrip().splitlines()
                line = text[: match.start()].count("\n") + 1
                found.append(Block(page, line, match[1], match[2], above[-1] if above else ""))
    return found


def _shell_commands() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every simple command in a shell block, without variables set before it or redirections."""
    for block in _blocks(*_SHELL):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                yield str(block), words


def _vllm_edit_commands() -> list[Any]:
    """Arguments of every `vllm-edit` in a shell block (complete), and in a code span (maybe without arguments)."""
    cases = [
        pytest.param(words[1:], True, id=f"{where} {' '.join(words[1:3])}")
        for where, words in _shell_commands()
        if words[0].endswith("vllm-edit")
    ]
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for span in dict.fromkeys(found for found in _SPAN.findall(text) if found.startswith("vllm-edit ")):
            words = [word for word in shlex.split(span)[1:] if word != "…" and not word.startswith("[")]
            cases.append(pytest.param(words, False, id=f"{page.relative_to(ROOT)} {span}"))
    return cases


def _resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` begin with, and the words after its name."""
    command = get_command(app)
    rest = list(words)
    while hasattr(command, "list_commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        context = command.make_context("vllm-edit", [name], resilient_parsing=True)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}; there are {command.list_commands(context)}"
        command = found
    return command, rest


@pytest.mark.parametrize(("words", "complete"), _vllm_edit_commands())
def test_every_command_in_the_docs_exists_and_takes_its_arguments(words: list[str], complete: bool) -> None:
    command, rest = _resolve(words)
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if getattr(command, "context_settings", {}).get("ignore_unknown_options"):
        own = [word for word in rest if word in options]
        passed_on = [word for word in rest if word.startswith("--") and word not in own]
        assert not [flag for flag in passed_on if not _is_vllm_flag(flag)]
    elif complete:
        command.make_context("vllm-edit", rest)  # raises for unknown options, missing arguments and wrong values
    else:
        unknown = [word for word in rest if word.startswith("--") and word not in {*options, "--help"}]
        assert not unknown, f"options are {sorted(options)}"


def _is_vllm_flag(flag: str) -> bool:
    """True if a field of vLLM's arguments gives this flag. Read as text: importing vLLM takes many seconds."""
    found = importlib.util.find_spec("vllm")
    assert found is not None, "vLLM is not installed"
    folder = Path(str(found.origin)).parent
    field = flag.removeprefix("--").partition("=")[0].replace("-", "_")
    sources = [folder / "engine/arg_utils.py", *(folder / "entrypoints").rglob("cli_args.py")]
    return any(re.search(rf"^    {field}: ", source.read_text(encoding="utf-8"), re.MULTILINE) for source in sources)


def test_help_of_every_documented_command_imports_neither_torch_nor_vllm() -> None:
    asked = sorted({tuple(_path_of(case.values[0])) for case in _vllm_edit_commands()})
    program = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from vllm_edit.cli import app\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    ran = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert ran.exit_code == 0, (words, ran.output)\n"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, json.dumps(asked)], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def _path_of(words: list[str]) -> list[str]:
    """The words that name the command."""
    _, rest = _resolve(words)
    return words[: len(words) - len(rest)]


def test_make_targets_and_modules_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for names in re.findall(r"^([a-z0-9 -]+):(?!=)", makefile, re.MULTILINE) for name in names.split()}
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    spans = [span.split() for text in texts for span in _SPAN.findall(_FENCE.sub("", text))]
    for words in [*(words for _, words in _shell_commands()), *spans]:
        if words[:1] == ["make"]:
            assert words[1] in targets
        if words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, link


def _anchor(heading: str) -> str:
    """The anchor that a heading gets where the pages are shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("block", _blocks("yaml"), ids=str)
def test_yaml_examples_load(block: Block) -> None:
    data = YamlDocument.parse(block.text).data
    if block.before == "<!-- bad patch -->":
        return  # the next test's
    if isinstance(data, list):
        assert Bank.from_records(data).facts
    else:
        assert Patch.parse(block.text).edits


def test_messages_about_the_bad_patch_are_those_in_the_docs() -> None:
    bad = next(block for block in _blocks("yaml") if block.before == "<!-- bad patch -->")
    shown = next(block for block in _blocks("text") if block.page == bad.page and block.line > bad.line)
    with pytest.raises(PatchError) as raised:
        Patch.parse(bad.text, source="capital.yaml")
    assert [f"vllm-edit: {line}" for line in str(raised.value).splitlines()] == shown.text.splitlines()


def test_schema_accepts_every_patch_and_example_and_refuses_the_bad_one() -> None:
    schema = Patch.model_json_schema()
    checker = jsonschema.validators.validator_for(schema)
    checker.check_schema(schema)
    patches = [path.read_text(encoding="utf-8") for path in PATCHES]
    good = [block.text for block in _blocks("yaml") if block.before != "<!-- bad patch -->" and "edits:" in block.text]
    assert patches
    assert good
    for text in [*patches, *good]:
        checker(schema).validate(YamlDocument.parse(text).data)
    bad = next(block for block in _blocks("yaml") if block.before == "<!-- bad patch -->")
    assert list(checker(schema).iter_errors(YamlDocument.parse(bad.text).data))


def test_every_field_of_a_patch_is_documented() -> None:
    page = (ROOT / "docs" / "patches.md").read_text(encoding="utf-8")
    parts = [Patch.model_json_schema(), *Patch.model_json_schema()["$defs"].values()]
    for field in {name for part in parts for name in part["properties"]}:
        assert f"| `{field}` |" in page, field


def _unexecuted() -> list[Block]:
    """Python blocks that no other test executes, as `test_contributing` does."""
    return [block for block in _blocks("python") if not block.before.startswith("<!-- example: ")]


@pytest.mark.parametrize("block", _unexecuted(), ids=str)
def test_python_examples_compile_and_use_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm_edit":
            for alias in node.names:
                known[alias.asname or alias.name] = _imported(node.module, alias.name)
    assert known
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _called(node.func, known)) is not None:
            named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(called).bind(*node.args, **named)


def _imported(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


def _called(function: ast.expr, known: dict[str, Any]) -> Any:
    """The called object, if it is an imported name or an attribute of an imported name."""
    if isinstance(function, ast.Name):
        return known.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in known:
        return getattr(known[function.value.id], function.attr)
    return None


def test_bodies_of_requests_in_the_docs_are_json() -> None:
    bodies = [words[words.index("-d") + 1] for _, words in _shell_commands() if "-d" in words]
    assert len(bodies) >= 4
    assert all(isinstance(json.loads(body), dict) for body in bodies)


def test_documented_routes_are_those_that_are_served() -> None:
    from vllm_edit.serving.admin.api import api
    from vllm_edit.serving.admin.authorization import METRICS
    from vllm_edit.serving.router import INFERENCE, MODELS, UNASKED
    from vllm_edit.serving.service import Holder

    admin = api(Holder()).routes
    served = {("POST", path) for path in INFERENCE} | UNASKED | {("GET", MODELS), ("GET", METRICS)}
    served |= {(method, route.path) for route in admin for method in route.methods}  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(GET|POST) (/[^`\s]*)`", page)) == served


def test_fields_that_mode_ike_refuses_are_documented() -> None:
    from vllm_edit.serving import bodies

    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for field in (*bodies._REVEALING, *bodies._STORED):
        assert f"`{field}`" in page


def test_environment_variables_are_documented_and_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vllm_edit").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"[\"'](VLLM_EDIT_[A-Z_]+)[\"']", text)}
    documented = {name for page in PAGES for name in re.findall(r"VLLM_EDIT_[A-Z_]+", page.read_text(encoding="utf-8"))}
    assert documented == read


def test_the_kinds_of_change_in_the_audit_are_documented() -> None:
    """A kind is the first argument of the call that makes the change."""
    made = r"(?:\bmake|_change)\(\s*f?\"((?:patch|tenant|key|signer|rollout|job|server)\.[a-z{}]+)\""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vllm_edit").rglob("*.py")]
    found = {kind for text in sources for kind in re.findall(made, text)}
    steps = {f"rollout.{step}" for step in (*get_args(Verb), *get_args(Action), "shadow")}
    known = {kind for kind in found if "{" not in kind} | steps | {"job.finish", "job.fail"}
    page = (ROOT / "docs" / "registry.md").read_text(encoding="utf-8")
    listed = page.partition("The kinds of change are")[2].partition("A step that")[0]
    subject, documented = "", set()
    for named in re.findall(r"`([a-z]*)\.([a-z]+)`", listed):
        subject = named[0] or subject
        documented.add(f"{subject}.{named[1]}")
    assert documented == known


def test_metrics_in_the_docs_are_those_that_are_exposed() -> None:
    from prometheus_client import CollectorRegistry

    from vllm_edit.serving.metrics import Metrics

    registry = CollectorRegistry()
    Metrics(registry)
    exposed = {name for family in registry.collect() for name in (f"{family.name}_total", family.name)}
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(vllm_edit_[a-z_]+)`", page)) - {"vllm_edit"}
    assert documented <= exposed
    assert {family.name for family in registry.collect()} == {name.removesuffix("_total") for name in documented}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_table_of_a_methods_settings_is_that_of_the_code(method: str) -> None:
    mark = f"settings {method}"
    shown = [shown for page in PAGES if (shown := _marked(page.read_text(encoding="utf-8"), mark)) is not None]
    table = _settings_table(METHODS[method].settings)
    assert shown == [table], f"one page should hold, between <!-- {mark} --> and <!-- /{mark} -->:\n{table}"


def _marked(text: str, mark: str) -> str | None:
    """The text between a page's marks of that name."""
    _, opened, rest = text.partition(f"<!-- {mark} -->\n")
    return rest.partition(f"<!-- /{mark} -->")[0] if opened else None


def _settings_table(settings: type[MethodSettings]) -> str:
    """Name, default and description of every field of a settings class, those that change no result at the end."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, field in sorted(settings.model_fields.items(), key=lambda item: bool(item[1].exclude)):
        assert field.description, f"{name} has no docstring"
        description = " ".join(field.description.split()).replace("|", "\\|")
        missing = "site's" if "None takes the site's" in description else "none"
        shown = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        default = missing if shown is None else shown
        if name in settings.scoped:
            default = f"{default}; scope subject: {settings.scoped[name]}"
        rows.append(f"| `{name}` | {default} | {description} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("page", methods.PAGES)
def test_the_table_of_methods_is_that_of_the_last_measurement(page: str) -> None:
    measured = ROOT / "benchmarks" / "results" / "methods.json"
    shown = _marked((ROOT / page).read_text(encoding="utf-8"), "methods")
    expected = f"{methods.table(json.loads(measured.read_text()), methods.PAGES[page])}\n" if measured.exists() else ""
    assert shown == expected, "run make bench-methods"


def test_pages_name_no_path_of_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|home|root|Users)/", text), page
        assert os.fspath(ROOT) not in text, page


def test_each_package_has_a_page_that_names_its_files_and_the_readme_names_the_packages() -> None:
    root = ROOT / "vllm_edit"
    layout = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    for package in sorted(found.parent for found in root.rglob("__init__.py")):
        modules = {file.name for file in package.glob("*.py")} - {"__init__.py", "__main__.py"}
        if package in (root, root / "registry" / "migrations") or not modules:
            continue
        page = (package / "README.md").read_text(encoding="utf-8")
        assert {name for name in modules if f"`{name}`" not in page} == set(), package
        if package.parent == root:
            assert f"(vllm_edit/{package.name}/README.md)" in layout


def test_marks_for_measured_output_come_in_pairs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark in ("demo-real", "known", "demo", "quality"):
        assert text.index(f"<!-- {mark} -->") < text.index(f"<!-- /{mark} -->")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    from prometheus_client import CollectorRegistry

    from vllm_edit.serving.metrics import Metrics

    registry = CollectorRegistry()
    Metrics(registry)
    kinds = {family.name: family.type for family in registry.collect()}
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    suffix = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
    assert set(re.findall(r"vllm_edit_[a-z_]+", asked)) == {f"{name}{suffix[kind]}" for name, kind in kinds.items()}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
