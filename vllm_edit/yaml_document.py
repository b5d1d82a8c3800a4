"""A YAML document with line numbers, for messages that locate a problem."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_edit.text import quoted

Location = tuple[int | str, ...]
"""The path of a node: keys of mappings and indices of lists."""


def field(location: Location) -> str:
    """The path of a node in messages: `edits.0.prompt`."""
    names = (str(part) for part in location)
    return ".".join(name if name.isprintable() and len(name) <= 80 else quoted(name) for name in names)


class NotYaml(ValueError):
    """A text that is not valid YAML; the message is one line, with the location if it is known."""


@dataclass(frozen=True)
class YamlDocument:
    """A document as plain values.

    `given_twice` holds one line per duplicate key; `data` has the last value. YAML forbids duplicate keys, but PyYAML
    accepts them silently.
    """

    data: Any
    given_twice: tuple[str, ...]
    _tree: yaml.Node | None

    @classmethod
    def parse(cls, text: str) -> YamlDocument:
        """Raises `NotYaml`."""
        try:
            loader = _Loader(text)
            tree = loader.get_single_node()
            twice = tuple(_given_twice(tree))  # before merge keys are resolved
            return cls(None if tree is None else loader.construct_document(tree), twice, tree)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise NotYaml(f"{where}not valid YAML: {reason}") from None
        except RecursionError:
            raise NotYaml("not valid YAML: lists and mappings are nested deeper than can be read") from None

    def line(self, location: Location) -> int:
        """The line of the deepest node on the path `location` that exists in the file."""
        node = self._tree
        line = node.start_mark.line + 1 if node is not None else 1
        for part in location:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
                if not found:
                    break
                line, node = found[-1][0].start_mark.line + 1, found[-1][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, with a location in every error. PyYAML itself passes on errors of `int` and `datetime`."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"expected a value of kind {kind}: {error}", problem_mark=node.start_mark
            ) from None


def _given_twice(tree: yaml.Node | None) -> Iterator[str]:
    """One line for each duplicate key."""
    waiting = deque[tuple[yaml.Node | None, Location]]([(tree, ())])
    seen = set[int]()
    while waiting:
        node, location = waiting.popleft()
        if id(node) in seen:  # an alias of a node already read, possibly of an ancestor
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, (*location, number)) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], yaml.Node] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                part, earlier = (*location, key.value), first.setdefault((key.tag, key.value), key)
                if earlier is not key:
                    line, before = key.start_mark.line + 1, earlier.start_mark.line + 1
                    yield f"line {line}: {field(part)} is given twice, first in line {before}"
                waiting.append((value, part))
