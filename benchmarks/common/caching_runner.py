"""A runner for benchmarks that compare many ways with one base."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.evaluation.runners.runner import Reading, Request, Runner, Scored


class CachingRunner:
    """A runner that asks the base each question once, however many methods are compared with it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[tuple[str, bool, int], str] = {}

    name = property(lambda self: self._runner.name)
    context = property(lambda self: self._runner.context)
    tokenizer = property(lambda self: self._runner.tokenizer)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        keys = [None if request.patch else (request.prompt, request.chat, max_tokens) for request in requests]
        new = [place for place, key in enumerate(keys) if key not in self._known]
        answers = self._runner.generate([requests[place] for place in new], max_tokens)
        fresh = dict(zip(new, answers, strict=True))
        self._known.update((key, fresh[place]) for place in new if (key := keys[place]) is not None)
        return [fresh[place] if key is None else self._known[key] for place, key in enumerate(keys)]

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        return self._runner.score(requests)

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        return self._runner.read(requests)
