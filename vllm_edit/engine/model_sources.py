"""Reads vLLM's model classes from its source files, without importing vLLM (an import takes 15 seconds or more).

Upstream: `vllm/model_executor/models/registry.py` holds dictionaries of architecture → (module, class) literals, and a
class supports LoRA if `SupportsLoRA` is among its bases (0.32.0). Delete when vLLM's registry caches `supports_lora`
for its classes.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_MODELS = "vllm.model_executor.models"
_INTERFACE = "SupportsLoRA"


@dataclass(frozen=True)
class ModelSources:
    """The source files of an installed vLLM; `root` is the folder of the package."""

    root: Path

    @classmethod
    def installed(cls) -> ModelSources | None:
        """The sources of the vLLM that this Python finds; None if vLLM is not installed."""
        found = importlib.util.find_spec("vllm")
        return None if found is None or found.origin is None else cls(Path(found.origin).parent)

    def class_of(self, architecture: str) -> str | None:
        """Name of the class in vLLM's own registry for an architecture; None if the registry has no entry."""
        entry = self._registry.get(architecture)
        return None if entry is None else entry[1]

    def supports_lora(self, architecture: str) -> bool:
        """True if the sources declare that the architecture's class supports LoRA.

        False means "not found in the sources": let vLLM itself resolve the class before refusing a model.
        """
        entry = self._registry.get(architecture)
        if entry is None:
            return False
        module, name = entry
        return self._inherits(module if module.startswith("vllm.") else f"{_MODELS}.{module}", name, set())

    @cached_property
    def _registry(self) -> dict[str, tuple[str, str]]:
        """Architecture → (module, class), from every dictionary of such literals in the registry's file."""
        tree = self._parsed(f"{_MODELS}.registry")
        found: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree) if tree else ():
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                match key, value:
                    case ast.Constant(str(name)), ast.Tuple([ast.Constant(str(module)), ast.Constant(str(owner))]):
                        found.setdefault(name, (module, owner))
        return found

    def _inherits(self, module: str, name: str, seen: set[tuple[str, str]]) -> bool:
        """True if the class `name` of a module, or a class that it inherits from, is the interface."""
        if name == _INTERFACE:
            return True
        tree = None if (module, name) in seen else self._parsed(module)
        if tree is None:
            return False
        seen.add((module, name))
        declared = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
        if declared is None:  # imported from another module, or missing
            source = self._imports(module, tree).get(name)
            return source is not None and self._inherits(*source, seen)
        bases = [base.id for base in declared.bases if isinstance(base, ast.Name)]
        return any(self._inherits(module, base, seen) for base in bases)

    def _imports(self, module: str, tree: ast.Module) -> dict[str, tuple[str, str]]:
        """Names that a module imports from modules of vLLM, as name → (module, name in that module)."""
        package = module if self._is_package(module) else module.rpartition(".")[0]
        found: dict[str, tuple[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                found |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
        return {name: source for name, source in found.items() if source[0].startswith("vllm.")}

    def _parsed(self, module: str) -> ast.Module | None:
        path = self._path(module)
        file = path / "__init__.py" if self._is_package(module) else path.with_suffix(".py")
        return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _is_package(self, module: str) -> bool:
        return (self._path(module) / "__init__.py").is_file()

    def _path(self, module: str) -> Path:
        return self.root.joinpath(*module.split(".")[1:])
