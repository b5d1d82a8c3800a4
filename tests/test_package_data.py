"""The wheel has every file that the code reads beside its modules."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from jinja2 import Environment, PackageLoader

import vllm_edit
from vllm_edit.serving.console.display import FILTERS

CODE = Path(vllm_edit.__file__).parent
PATTERNS = tomllib.loads((CODE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
    "vllm_edit"
]
PACKAGED = {path for pattern in PATTERNS for path in CODE.glob(pattern)}


@pytest.mark.parametrize("folder", ["serving/console/templates", "serving/console/static", "facts/tables"])
def test_every_file_of_the_folder_is_packaged(folder: str) -> None:
    found = {path for path in (CODE / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert len(found) > 3
    assert found <= PACKAGED


def test_every_template_is_found_by_the_package_and_compiles() -> None:
    environment = Environment(loader=PackageLoader("vllm_edit.serving.console"), autoescape=True)
    environment.filters |= FILTERS
    names = environment.list_templates()
    assert "base.html" in names
    for name in names:
        environment.get_template(name)


def test_the_licence_of_the_script_that_is_not_ours_is_beside_it() -> None:
    static = CODE / "serving/console/static"
    licence = (static / "htmx.LICENSE").read_text(encoding="utf-8")
    script = (static / "htmx.min.js").read_text(encoding="utf-8")
    version = licence.split()[1].rstrip(",")
    assert f'version:"{version}"' in script
    assert "Zero-Clause BSD" in licence
