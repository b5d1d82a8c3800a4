"""A runner that asks nothing twice, whichever row wants it: neither the base, nor a model under the same adapter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.runners.runner import Reading, Request, Runner, Scored
from vllm_edit.evaluation.sheet import Sheet

T = TypeVar("T")


class Memory:
    """Answers by (prompt, chat, adapter), so that what is equal is equal to the last bit."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[Hashable, Any] = {}

    name = property(lambda self: self._runner.name)
    context = property(lambda self: self._runner.context)
    tokenizer = property(lambda self: self._runner.tokenizer)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        return self.remembered(requests, ("text", max_tokens), lambda new: self._runner.generate(new, max_tokens))

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        keys = [("scored", answer, key_of(request)) for request, answer in requests]
        return self._recalled(keys, lambda new: self._runner.score([requests[place] for place in new]))

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        return self.remembered(requests, "read", self._runner.read)

    def remembered(
        self, requests: Sequence[Request], what: Hashable, ask: Callable[[list[Request]], Sequence[T]]
    ) -> list[T]:
        """The answers of `ask` to the requests; a request that was asked before is not asked again."""
        keys = [(what, key_of(request)) for request in requests]
        return self._recalled(keys, lambda new: ask([requests[place] for place in new]))

    def learn(self, sheet: Sheet, mode: Mode, adapter: str | None, max_tokens: int | None) -> None:
        """Take what a sheet of an earlier run says of a mode whose prompts all ran under `adapter`."""
        for question, reply in zip(sheet.questions, sheet.replies[mode], strict=True):
            key = (question.prompt, question.chat, adapter)
            if reply.text is not None:
                self._known[("text", max_tokens), key] = reply.text
            for answer, scored in ((question.expected, reply.expected), (question.rival, reply.rival)):
                if answer and scored is not None:
                    self._known["scored", answer, key] = scored

    def know(self, what: Hashable, key: Hashable, value: object) -> None:
        """Take one answer of an earlier run."""
        self._known[what, key] = value

    def _recalled(self, keys: Sequence[Hashable], ask: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """The answer of each key. ask: from places in `keys` to answers."""
        new: Mapping[Hashable, int] = {key: place for place, key in enumerate(keys) if key not in self._known}
        answers = ask(list(new.values())) if new else ()
        self._known |= zip(new, answers, strict=True)
        return [self._known[key] for key in keys]


def key_of(request: Request) -> tuple[str, bool, str | None]:
    """What decides the answer to a request: its prompt, how it is asked, and the adapter's digest."""
    return request.prompt, request.chat, request.patch.manifest.adapter if request.patch else None
