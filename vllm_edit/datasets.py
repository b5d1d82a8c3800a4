"""Readers of public editing data in this project's terms: CounterFact (both forms), KnowEdit and zsRE.

Field names differ from set to set, and values are a string, a list or a list of lists of aliases; the first usable
string is taken. Locality of one subject (KnowEdit's Relation_Specificity and Forgetfulness) is `locality_subject`,
CounterFact's neighbours are `locality`, and zsRE's questions about anything are `unrelated`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_edit.errors import EditError
from vllm_edit.patch import Edit
from vllm_edit.text import spelled

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
_NQ = "nq question: "


def read_edits(path: str | Path, limit: int | None = None) -> list[Edit]:
    """The edits of a JSON data set, at most `limit`; records that are no edit (no new answer, no subject in the
    prompt, nothing to change) are counted in the log and left out.

    Raises:
        EditError: the file is not JSON, or not one of the known forms.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EditError(f"{path}: expected a JSON data set: {error}") from None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise EditError(f"{path}: expected a JSON list of records")
    edits: list[Edit] = []
    left_out = 0
    for record in records:
        if limit is not None and len(edits) == limit:
            break
        try:
            edits.append(Edit.model_validate(_reader(path, record)(record)))
        except ValidationError:
            left_out += 1
    if left_out:
        log.warning("%s: %d of %d records are no edits", path.name, left_out, left_out + len(edits))
    if not edits:
        raise EditError(f"{path}: none of its {left_out} records is an edit")
    return edits


def _reader(path: Path, record: Record) -> Callable[[Record], dict[str, Any]]:
    for keys, reader in _READERS:
        if keys <= record.keys():
            return reader
    forms = "; ".join(", ".join(sorted(keys)) for keys, _ in _READERS)
    raise EditError(f"{path}: a record has the fields {', '.join(record)}; expected one of: {forms}")


def _counterfact(record: Record) -> dict[str, Any]:
    """The original form (Meng et al. 2022): requested_rewrite, paraphrase_prompts, neighborhood_prompts."""
    asked = record["requested_rewrite"]
    true = asked["target_true"]["str"]
    probes = [{"kind": "paraphrase", "prompt": prompt} for prompt in record.get("paraphrase_prompts", ())]
    probes += [
        {"kind": "locality", "prompt": prompt, "target": true} for prompt in record.get("neighborhood_prompts", ())
    ]
    return {
        "prompt": asked["prompt"].format(asked["subject"]),
        "subject": asked["subject"],
        "relation": asked.get("relation_id", ""),
        "target_new": asked["target_new"]["str"],
        "target_true": true,
        "probes": probes,
    }


def _flat(record: Record) -> dict[str, Any]:
    """CounterFact flattened, and KnowEdit."""
    probes = list(_probes("paraphrase", [{"prompt": record.get("rephrase_prompt")}]))
    neighbour = {"prompt": record.get("locality_prompt"), "ground_truth": record.get("locality_ground_truth")}
    probes += _probes("locality", [neighbour])
    for name, asked in (record.get("portability") or {}).items():
        probes += _probes("portability", asked, name.lower())
    for name, asked in (record.get("locality") or {}).items():
        probes += _probes("locality_subject", asked, name.lower())
    return {
        **_subject_in(record["prompt"], record["subject"]),
        "target_new": _first(record["target_new"]),
        "target_true": _first(record.get("ground_truth")),
        "probes": probes,
    }


def _zsre(record: Record) -> dict[str, Any]:
    """zsRE in the form that MEND trains on."""
    asked = {"prompt": (record.get("loc") or "").removeprefix(_NQ), "ground_truth": record.get("loc_ans")}
    return {
        **_subject_in(record["src"], record["subject"]),
        "target_new": _first(record["alt"]),
        "target_true": _first(record.get("answers")),
        "probes": [*_probes("paraphrase", [{"prompt": record.get("rephrase")}]), *_probes("unrelated", [asked])],
    }


def _wikibio(record: Record) -> dict[str, Any]:
    """KnowEdit's WikiBio: the next sentence about a person, here the answer."""
    probes = [
        probe
        for name, asked in (record.get("locality") or {}).items()
        for probe in _probes("locality_subject", asked, name.lower())
    ]
    return {
        **_subject_in(record["text"], record["concept"]),
        "target_new": _first(record["labels"]),
        "probes": probes,
    }


_READERS: tuple[tuple[frozenset[str], Callable[[Record], dict[str, Any]]], ...] = (
    (frozenset({"requested_rewrite"}), _counterfact),
    (frozenset({"src", "alt", "subject"}), _zsre),
    (frozenset({"text", "labels", "concept"}), _wikibio),
    (frozenset({"prompt", "subject", "target_new"}), _flat),
)


def _probes(kind: str, asked: Any, tag: str = "") -> Iterator[dict[str, Any]]:
    """Probes of `asked`: mappings with prompt and, but for paraphrases, ground_truth. Incomplete ones are left out."""
    for one in asked if isinstance(asked, list) else [asked]:
        prompt, target = _first(one.get("prompt")), _first(one.get("ground_truth"))
        if prompt and (target or kind != "portability"):
            yield {"kind": kind, "prompt": prompt, "target": target, "tag": tag}


def _subject_in(prompt: str, subject: str) -> dict[str, str]:
    """prompt and subject, the subject as the prompt spells it, where it has it as a whole word."""
    return {"prompt": prompt, "subject": spelled(prompt, subject) or subject}


def _first(value: Any) -> str | None:
    """The first string that is not blank in a string or in nested lists of strings."""
    if isinstance(value, str):
        return value.strip() or None
    for one in value or ():
        found = _first(one)
        if found:
            return found
    return None
