"""A submitted patch: the body of a request in YAML or JSON, within limits, and the settings of its query."""

from __future__ import annotations

from collections.abc import Iterable
from email.message import Message
from typing import cast

from vllm_edit.errors import EditError, PatchError
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.names import shown
from vllm_edit.patch import Document, Patch
from vllm_edit.serving.bodies import TooLarge
from vllm_edit.serving.surrogates import check
from vllm_edit.text.json_document import JsonDocument, NotJson
from vllm_edit.text.yaml_document import NotYaml, YamlDocument

JSON_TYPE = "application/json"
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")

MOST_EDITS = 1_000
MOST_YAML_BYTES = 2**18
"""To read a MiB takes 3 s of processor time in YAML, and 0.06 s in JSON (measured on a core of an AMD EPYC)."""

_SOURCE = "body"
_MOST_PROBLEMS = 8


def read_patch(raw: bytes, content_type: str) -> Patch:
    """Read a patch from a request's body.

    Args:
        raw: the body.
        content_type: the header's value.

    Raises:
        TooLarge: the body is YAML and too long.
        EditError: the body is no patch, or has too many edits; one line lists its first problems.
    """
    try:
        document = _parsed(raw, _media_type(content_type))
        edits = document.data.get("edits") if isinstance(document.data, dict) else None
        if isinstance(edits, list) and len(edits) > MOST_EDITS:
            raise EditError(f"expected at most {MOST_EDITS:,} edits, got {len(edits):,}: split the patch")
        return Patch.of_document(document, _SOURCE, _MOST_PROBLEMS)
    except PatchError as error:
        more = len(error.problems) - _MOST_PROBLEMS
        problems = [*error.problems[:_MOST_PROBLEMS], *([f"and {more} more problems"] if more > 0 else [])]
        raise EditError(f"{_SOURCE}: {'; '.join(' '.join(problem.split()) for problem in problems)}") from None


def read_settings(given: Iterable[str]) -> JSONObject:
    """Settings by name, each given as `KEY=VALUE` with a value in YAML, as on the command line.

    Raises:
        EditError: one has another form.
    """
    chosen: JSONObject = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise EditError(f"set: expected KEY=VALUE, got {shown(text)}")
        check(value, "set")
        try:
            parsed = YamlDocument.parse(value, aliases=False).data
        except NotYaml as error:
            raise EditError(f"set: expected a value in YAML, got {shown(text)}: {error}") from None
        if key.strip() in chosen:
            raise EditError(f"set: {shown(key.strip())} is given twice; give it once")
        chosen[key.strip()] = cast("JSONValue", parsed)  # `JobRequest.check` refuses dates, which are not JSON
    return chosen


def _parsed(raw: bytes, media_type: str) -> Document:
    if media_type == JSON_TYPE:
        try:
            return JsonDocument.parse(raw)
        except NotJson as error:
            raise PatchError(_SOURCE, [str(error)]) from None
    if media_type not in YAML_TYPES:
        raise EditError(f"expected Content-Type {JSON_TYPE} or {YAML_TYPES[0]}, got {shown(media_type)}")
    if len(raw) > MOST_YAML_BYTES:
        raise TooLarge(f"a patch in YAML may have {MOST_YAML_BYTES:,} bytes, got {len(raw):,}: send it as JSON")
    try:
        return YamlDocument.parse(raw.decode(), aliases=False)
    except UnicodeDecodeError as error:
        raise PatchError(_SOURCE, [f"not UTF-8: byte {error.start + 1} is invalid"]) from None
    except NotYaml as error:
        raise PatchError(_SOURCE, [str(error)]) from None


def _media_type(content_type: str) -> str:
    """The type without its parameters, in lower case."""
    message = Message()
    message["Content-Type"] = " ".join(content_type.split())
    return message.get_content_type() if content_type else ""
