"""Forms: the wordings of one edit's prompt. They define its keys and the rows that train its residual.

The plain prompt and the chat form run in every plain or chat context of the site. Aliases and `tune` paraphrases run
without a context, because they vary the wording and not the surrounding text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_edit.artefacts.site import Context, Site, Token
from vllm_edit.edit import LOCALITY_KINDS, Edit, Probe
from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.errors import EditError
from vllm_edit.models.positions import contextual, locate, position
from vllm_edit.models.rows import Row
from vllm_edit.text.matching import last_occurrence, mentions, occurrences, spelled
from vllm_edit.text.prompts import answer_ids, prompt_ids
from vllm_edit.text.quoting import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Form:
    """One form of an edit. subject: the name that locates the site's token; None if the prompt does not contain one."""

    name: str
    prompt: str
    subject: str | None
    target: str
    contexts: tuple[Context, ...]

    @property
    def weights(self) -> list[float]:
        """Each context's weight in the form's key: one half for the bare contexts, one half for the prefixed ones."""
        bare = [not context.prefix for context in self.contexts]
        share = {True: sum(bare), False: len(bare) - sum(bare)}
        return [(0.5 if all(share.values()) else 1.0) / share[kind] for kind in bare]


def forms_of(edit: Edit, tokenizer: PreTrainedTokenizerFast, site: Site, wanted: Sequence[str]) -> list[Form]:
    """The forms in `wanted` that this edit and tokenizer support, plain first."""
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    plain = _bare_first([context for context in site.contexts if not context.chat], chat=False)
    chat = _bare_first([context for context in site.contexts if context.chat], chat=True) if has_chat else ()
    forms = [Form("plain", edit.prompt, edit.subject, edit.target_new, plain)]
    if "chat" in wanted and chat:
        forms.append(Form("chat", edit.prompt, edit.subject, edit.target_new, chat))
    if "alias" in wanted:
        for alias in edit.aliases:
            prompt = named_otherwise(edit, alias)
            forms.append(Form(f"alias:{alias}", prompt, alias, edit.target_new, (Context(),)))
    if "tune" in wanted:
        for index, probe in enumerate(edit.probes_of("paraphrase", "tune")):
            named = _named_subject(edit, probe)
            if (probe.chat and not has_chat) or (site.token == "subject_last" and named is None):
                continue
            context = Context(chat=probe.chat)
            forms.append(Form(f"tune:{index}", probe.prompt, named, probe.target or edit.target_new, (context,)))
    return forms


def form_rows(form: Form, edit: int, tokenizer: PreTrainedTokenizerFast, token: Token) -> list[Row]:
    """One row per context, with the answer to teach. The group is not known yet and set to 0."""
    rows = []
    for context in form.contexts:
        answer = tuple(answer_ids(tokenizer, form.prompt, form.target, context.chat))
        ids, place = _site_position(tokenizer, form.prompt, form.subject, context, token)
        rows.append(Row(0, edit, form.name, ids, place, answer))
    return rows


def preservation_rows(
    edit: Edit, index: int, tokenizer: PreTrainedTokenizerFast, site: Site, settings: ClosedFormSettings
) -> list[Row]:
    """Rows without an answer: prompts after which the edited model should answer as the base does.

    These are the edit's `tune` locality probes, at their last token. An edit without such probes has the essence prompt
    ("{subject} is a") instead, at the subject's last token if the site is there (as in ROME's reference code), else at
    the prompt's last token.
    """
    if probed := locality_rows(edit, index, tokenizer):
        return probed
    essence = settings.essence.replace("{}", edit.subject)
    ids, place = _site_position(tokenizer, essence, edit.subject, Context(), site.token)
    return [Row(0, index, "preserve", ids[: place + 1], place)]


def locality_rows(edit: Edit, index: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """The edit's `tune` locality probes at their last token, without an answer. The update acts on all their tokens."""
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    probes = [probe for kind in LOCALITY_KINDS for probe in edit.probes_of(kind, "tune") if has_chat or not probe.chat]
    prompts = [tuple(prompt_ids(tokenizer, probe.prompt, probe.chat)) for probe in probes]
    return [Row(0, index, "preserve", ids, len(ids) - 1, begin=0) for ids in prompts]


def ended_rows(edit: Edit, index: int, tokenizer: PreTrainedTokenizerFast, site: Site) -> list[Row]:
    """The bare prompt and the bare chat turn, each followed by its answer, at the answer's last token."""
    rows = []
    for form in forms_of(edit, tokenizer, site, ("plain", "chat")):
        row = form_rows(form, index, tokenizer, site.token)[0]
        ids = row.ids + row.answer
        rows.append(Row(0, index, "ended", ids, len(ids) - 1))
    return rows


def probe_row(probe: Probe, target: str | None, edit: int, group: int, tokenizer: PreTrainedTokenizerFast) -> Row:
    """The row of a probe with the answer to score; without a target, the row has no answer."""
    ids = tuple(prompt_ids(tokenizer, probe.prompt, probe.chat))
    answer = tuple(answer_ids(tokenizer, probe.prompt, target, probe.chat)) if target else ()
    return Row(group, edit, probe.kind, ids, len(ids) - 1, answer)


def _bare_first(contexts: Sequence[Context], *, chat: bool) -> tuple[Context, ...]:
    """The contexts, starting with the bare context, which is added if it is missing."""
    prefixed = dict.fromkeys(context for context in contexts if context.prefix)
    return (Context(chat=chat), *prefixed)


def _site_position(
    tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str | None, context: Context, token: Token
) -> tuple[tuple[int, ...], int]:
    """The ids of the prompt in its context, and the index of the site's token (without a subject, the last token)."""
    if subject is None:
        ids = tuple(prompt_ids(tokenizer, contextual(prompt, context), context.chat))
        return ids, len(ids) - 1
    found = locate(tokenizer, prompt, subject, context)
    return tuple(found.ids), position(found, token)


def named_otherwise(edit: Edit, name: str) -> str:
    """The edit's prompt with the subject's last occurrence, which `locate` also uses, replaced by `name`."""
    start = last_occurrence(edit.prompt, edit.subject)
    if start is None:
        raise EditError(f"the prompt {quoted(edit.prompt)} does not contain the subject {edit.subject!r}")
    return edit.prompt[:start] + name + edit.prompt[start + len(edit.subject) :]


def _named_subject(edit: Edit, probe: Probe) -> str | None:
    """The name of the subject in the probe, as the probe spells it: the subject itself, or else the longest alias."""
    names = [edit.subject, *sorted(edit.aliases, key=len, reverse=True)]
    found = next((name for name in names if occurrences(probe.prompt, name)), None)
    return found or next((spelled(probe.prompt, name) for name in names if mentions(probe.prompt, name)), None)
