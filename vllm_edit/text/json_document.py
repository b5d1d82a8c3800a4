"""A JSON document as plain values, with its duplicate keys. Its problems are located by their fields alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_edit.text.yaml_document import Location, field


class NotJson(ValueError):
    """A text that is not valid JSON; the message is one line, with the location if it is known."""


@dataclass(frozen=True)
class JsonDocument:
    """A document as plain values.

    `given_twice` holds one line per duplicate key. `data` has the last value.
    """

    data: object
    given_twice: tuple[str, ...]

    @classmethod
    def parse(cls, text: str | bytes) -> JsonDocument:
        """Raises `NotJson`."""
        twice: list[str] = []

        def mapping(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
            made: dict[str, object] = {}
            for key, value in pairs:
                if key in made:
                    twice.append(f"{field((key,))} is given twice")
                made[key] = value
            return made

        try:
            return cls(json.loads(text, object_pairs_hook=mapping, parse_constant=_refuse), tuple(twice))
        except UnicodeDecodeError as error:
            raise NotJson(f"not valid JSON: byte {error.start + 1} is not {error.encoding}") from None
        except RecursionError:
            raise NotJson("not valid JSON: lists and objects are nested deeper than can be read") from None
        except ValueError as error:
            raise NotJson(f"not valid JSON: {' '.join(str(error).split())[:200]}") from None

    def place(self, location: Location) -> str:
        """JSON has no lines for people, so a message begins with the field."""
        return ""


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON value")
