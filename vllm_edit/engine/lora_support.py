"""Checks whether vLLM can serve a model with LoRA. It runs when a base model is imported, not when it is served."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.engine.compat import families
from vllm_edit.engine.model_sources import ModelSources
from vllm_edit.engine.plugins import PLUGIN
from vllm_edit.errors import EditError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraClass:
    """The class with which vLLM serves an architecture. `name` is None if vLLM has no class for it."""

    architecture: str
    name: str | None
    supports_lora: bool


def check_lora_support(folder: Path) -> None:
    """Refuse a model folder whose architecture vLLM cannot serve with LoRA. Without vLLM, log that nothing was checked.

    Raises:
        EditError: vLLM has no class for the architecture, or its class does not support LoRA.
    """
    found = lora_class(folder)
    if found is None:
        _log.warning("vLLM is not installed: whether it can serve %s with LoRA was not checked", folder.name)
    elif found.name is None:
        raise EditError(f"vLLM has no class for {found.architecture}, so this model cannot be served; choose another")
    elif not found.supports_lora:
        raise EditError(
            f"vLLM's class for {found.architecture} ({found.name}) does not support LoRA, so patches of this model "
            "cannot be served; choose a model of an architecture whose class does"
        )


def lora_class(folder: Path) -> LoraClass | None:
    """The class with which the installed vLLM would serve a model folder; None if vLLM is not installed.

    The folder needs only its config.json. vLLM's sources are read as text first, which takes some hundredths of a
    second. Only if they do not declare LoRA does vLLM itself resolve the class, in a separate process, in about 20 s.

    Raises:
        EditError: config.json is missing or is not a JSON object, or vLLM could not resolve a class.
    """
    sources = ModelSources.installed()
    if sources is None:
        return None
    architecture = _architecture(folder)
    if architecture in families.CLASSES:
        return LoraClass(architecture, families.CLASSES[architecture].rpartition(":")[2], supports_lora=True)
    if sources.supports_lora(architecture):
        return LoraClass(architecture, sources.class_of(architecture), supports_lora=True)
    return _resolved_by_vllm(folder, architecture)


def _architecture(folder: Path) -> str:
    """The first architecture that config.json names; "" if it names none, and vLLM has to find it."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise EditError(f"{folder} has no readable config.json: {error}; expected a model folder") from error
    return str(named[0]) if named else ""


def _resolved_by_vllm(folder: Path, architecture: str) -> LoraClass:
    """The class that vLLM itself resolves, in a separate process."""
    allowed = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name]
    plugins = {"VLLM_PLUGINS": ",".join(dict.fromkeys([*allowed, PLUGIN]))} if allowed else {}
    # With a store configured, our plugin expects to run inside a server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_EDIT_")} | plugins
    command = [sys.executable, "-m", "vllm_edit.engine.resolved_class", str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise EditError(f"vLLM could not be asked for its class for {architecture or folder}: {reason}")
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    return LoraClass(architecture or folder.name, answer["name"], answer["lora"])
