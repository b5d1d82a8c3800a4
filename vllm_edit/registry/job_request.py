"""The content of a job: a patch to compile, the method and its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from pydantic import ValidationError

from vllm_edit.digest import digest_json
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.names import shown
from vllm_edit.patch import Patch

AUTO = "auto"
"""The method that the store was made for."""

_METHOD = re.compile(r"[a-z0-9_]{1,32}")
_MOST_SETTINGS = 64
_LONGEST_SETTINGS = 16_000
"""Maximum length of the settings as JSON, in characters."""


@dataclass(frozen=True)
class JobRequest:
    """A patch to compile.

    The server that takes it knows no editing method. So the worker is the first to check the method's name and its
    settings.

    Attributes:
        patch: the edits, declared.
        method: the method's name, or `auto` for the method that the store was made for.
        settings: settings of the method by name; its defaults for the others.
    """

    patch: Patch
    method: str = AUTO
    settings: Mapping[str, JSONValue] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `EditError` if an edit has ended, or if the method's name or the settings have a form of no method."""
        if ended := self.patch.ended(datetime.now(UTC)):
            raise EditError("; ".join(ended))
        if _METHOD.fullmatch(self.method) is None:
            raise EditError(f"expected a method's name like rome, or {AUTO}, got {shown(self.method)}")
        try:
            size = len(json.dumps(dict(self.settings), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise EditError(f"settings must be JSON values without dates, NaN and infinity: {error}") from None
        if len(self.settings) > _MOST_SETTINGS or size > _LONGEST_SETTINGS:
            raise EditError(
                f"expected at most {_MOST_SETTINGS} settings of {_LONGEST_SETTINGS:,} characters together, got "
                f"{len(self.settings)} of {size:,}"
            )

    @cached_property
    def digest(self) -> str:
        """The digest of the content: equal requests are one job while it is open."""
        return digest_json(self._content)

    def dump(self) -> str:
        """The request as JSON in ASCII, which every database can hold; `load` reads it."""
        return json.dumps(self._content)

    @classmethod
    def load(cls, text: str) -> JobRequest:
        """Read what `dump` wrote.

        Raises:
            Corrupt: the text has another form.
        """
        try:
            content = json.loads(text)
            return cls(Patch.model_validate(content["patch"]), content["method"], content["settings"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise Corrupt(f"the request of a job cannot be read ({type(error).__name__}); cancel the job") from error

    @property
    def _content(self) -> JSONObject:
        return {
            "patch": self.patch.model_dump(mode="json"),
            "method": self.method,
            "settings": dict(self.settings),
        }
