"""A YAML document with line numbers, for messages that locate a problem.

ruamel.yaml reads YAML 1.2: `yes`, `no`, `on` and `off` are text, and 010 is ten.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from vllm_edit.text.quoting import quoted

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

    `given_twice` holds one line per duplicate key, which YAML forbids. `data` has the first value.
    """

    data: object
    given_twice: tuple[str, ...]
    _text: str

    @classmethod
    def parse(cls, text: str, *, aliases: bool = True) -> YamlDocument:
        """Parse a text.

        Args:
            text: the document.
            aliases: whether `*name` may repeat a value; a short text with aliases can have more values than memory.

        Raises:
            NotYaml: the text is not valid YAML, or has an alias that is not allowed.
        """
        yaml = _yaml()
        yaml.Constructor, yaml.allow_duplicate_keys = _Constructor, True
        if not aliases:
            yaml.Composer = _ComposerWithoutAliases
        try:
            return cls(yaml.load(text), tuple(yaml.constructor.given_twice), text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise NotYaml(f"{where}not valid YAML: {reason}") from None
        except RecursionError:
            raise NotYaml("not valid YAML: lists and mappings are nested deeper than can be read") from None
        except AssertionError as error:  # another version than 1.1 and 1.2
            raise NotYaml(f"not valid YAML: {error}") from None

    def place(self, location: Location) -> str:
        """The line of a node as the beginning of a message: `line 3: `."""
        return f"line {self.line(location)}: "

    def line(self, location: Location) -> int:
        """The line of the deepest node on the path `location` that exists in the file."""
        node = self._tree
        line = _line(node) if node is not None else 1
        for part in location:
            if isinstance(node, MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
                if not found:
                    break
                line, node = _line(found[-1][0]), found[-1][1]
            elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = _line(node)
            else:
                break
        return line

    @cached_property
    def _tree(self) -> Node | None:
        tree: Node | None = _yaml().compose(self._text)
        return tree


def dump_yaml(data: object) -> str:
    """Plain values as YAML, with mappings in their own order."""
    yaml, text = _yaml(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its None means to sort
    yaml.dump(data, text)
    return text.getvalue()


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # in C it is YAML 1.1


def _line(node: Node) -> int:
    line: int = node.start_mark.line + 1
    return line


class _ComposerWithoutAliases(Composer):
    """ruamel's composer, which refuses aliases before it follows them."""

    def compose_node(self, parent: Node | None, index: int | Node | None) -> Node | None:
        if self.parser.check_event(AliasEvent):
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, "an alias (*name) is not allowed here: write the value again", mark)
        node: Node | None = super().compose_node(parent, index)
        return node


class _Constructor(SafeConstructor):
    """ruamel's constructor, which collects duplicate keys, and locates the errors of `int` and `datetime`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.given_twice: list[str] = []
        self._seen: set[int] = set()

    def flatten_mapping(self, node: MappingNode) -> None:
        """Note duplicate keys of a mapping before keys of others are merged into it (`<<`)."""
        if id(node) not in self._seen:
            self._seen.add(id(node))
            first: dict[tuple[str, str], Node] = {}
            for key, _ in node.value:
                if not isinstance(key, ScalarNode):
                    continue
                earlier = first.setdefault((str(key.tag), key.value), key)
                if earlier is not key:
                    name = field((key.value,))
                    self.given_twice.append(f"line {_line(key)}: {name} is given twice, first in line {_line(earlier)}")
        super().flatten_mapping(node)

    def construct_object(self, node: Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = str(node.tag).rpartition(":")[2]
            raise ConstructorError(None, None, f"expected a value of kind {kind}: {error}", node.start_mark) from None
