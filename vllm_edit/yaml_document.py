"""A YAML document with the lines of its parts, for messages that say where a file is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_edit.text import quoted

Location = tuple[int | str, ...]
"""The way to a part: keys of mappings and numbers in lists."""


def field(location: Location) -> str:
    """The way to a part as messages name it: `edits.0.prompt`."""
    names = (str(part) for part in location)
    return ".".join(name if name.isprintable() and len(name) <= 80 else quoted(name) for name in names)


class NotYaml(ValueError):
    """A text that cannot be read as YAML; the message is one line that says where, as far as that is known."""


@dataclass(frozen=True)
class YamlDocument:
    """What a document says, as plain values.

    given_twice: one line for each key that its mapping already has, of which `data` has the last value. YAML forbids
    that, and PyYAML passes it over in silence.
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
            twice = tuple(_given_twice(tree))  # before merge keys are replaced by what they stand for
            return cls(None if tree is None else loader.construct_document(tree), twice, tree)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            told = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise NotYaml(f"{where}not valid YAML: {told}") from None
        except RecursionError:
            raise NotYaml("not valid YAML: lists and mappings within each other, deeper than can be read") from None

    def line(self, location: Location) -> int:
        """The line of the deepest part on the way `location` that is present in the file."""
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
    """PyYAML's, whose errors all say where. Of itself it raises what `int` and `datetime` do: of "2100-02-31"."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"expected a value of kind {kind}: {error}", problem_mark=node.start_mark
            ) from None


def _given_twice(tree: yaml.Node | None) -> Iterator[str]:
    """One line for each key that its mapping already has."""
    waiting = deque[tuple[yaml.Node | None, Location]]([(tree, ())])
    seen = set[int]()
    while waiting:
        node, location = waiting.popleft()
        if id(node) in seen:  # an alias of what was read, perhaps of what it is in
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
