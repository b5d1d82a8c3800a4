"""The record of an answered request, which the router fills in as the request proceeds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vllm_edit.errors import EditError, Unanswerable
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.rollout.assignment import Assignment
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.serving.error_responses import status_of
from vllm_edit.serving.model_field import NO_SUBJECT
from vllm_edit.serving.scope import Narrowed
from vllm_edit.serving.usage import Ended, Usage


def new_id() -> str:
    """A new id that cannot be guessed, so that only the answer's receiver knows it."""
    return f"edit-{secrets.token_hex(16)}"


@dataclass
class Answer:
    """The data of an `AnswerEntry`, under the same field names.

    assignment: set if a rollout alone decided, which makes the answer an exposure. prompt: set if prompts are logged.
    cut: it ended at its maximum number of tokens. unanswerable: no arm could have answered the request.
    """

    id: str
    route: str
    asked: str | None
    tenant: str | None
    adapter: str | None
    mode: str
    arm: str | None
    reason: str
    patch: str | None = None
    assignment: Assignment | None = None
    key: str | None = None
    generation: int | None = None
    prompt: str | None = None
    subjects: tuple[str, ...] | None = None
    groups: tuple[int, ...] | None = None
    ike_tokens: int = 0
    router_seconds: float = 0.0
    status: int | None = None
    ended: Ended | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None
    cut: bool = False
    unanswerable: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(
        cls,
        id: str,
        route: str,
        asked: str | None,
        choice: Choice,
        key: str | None = None,
        generation: int | None = None,
    ) -> Answer:
        """The answer for a choice. key: the id of the caller's API key. generation: that of the deciding snapshot."""
        return cls(
            id,
            route,
            asked,
            choice.tenant,
            choice.adapter,
            choice.mode,
            choice.arm,
            choice.reason,
            patch=choice.adapter,
            assignment=choice.assignment,
            key=key,
            generation=generation,
        )

    def narrow(self, narrowed: Narrowed) -> None:
        """Record the parts of the patch in scope. With nothing in scope, the base model answers."""
        self.subjects, self.groups = narrowed.subjects, narrowed.groups
        if not narrowed.subjects:
            self.adapter, self.reason = None, NO_SUBJECT
        elif self.mode == "weights":
            self.adapter = narrowed.adapter

    def end(self, usage: Usage) -> None:
        """Record how the answer ended, its duration and its tokens."""
        self.status, self.ended, self.seconds = usage.status, usage.ended, usage.seconds
        self.first_token_seconds, self.cut = usage.first_token_seconds, usage.cut
        self.prompt_tokens, self.completion_tokens = usage.tokens()

    def refuse(self, error: EditError, seconds: float) -> None:
        """Record that the router refused the request, because the choice could not be applied, or no arm could."""
        self.status, self.ended, self.router_seconds = int(status_of(error)), "refused", seconds
        self.unanswerable = isinstance(error, Unanswerable)

    @property
    def failed(self) -> bool:
        """True if the server or the arm failed. A client's disconnect is not a failure, and neither is a request that
        no arm could answer: on an arm where vLLM refuses it, its 400 is none."""
        if self.unanswerable:
            return False
        return self.ended in ("broken", "refused") or (self.status is not None and self.status >= 500)

    def entry(self, server: str) -> AnswerEntry:
        """The answer's current state, for the log."""
        unstored = ("assignment", "cut", "unanswerable")
        fields = {name: value for name, value in vars(self).items() if name not in unstored}
        rollout = None if self.assignment is None else self.assignment.rollout
        return AnswerEntry(**fields, rollout=rollout, server=server)

    def exposure(self) -> Exposure | None:
        """The exposure that its rollout counts; None if no rollout decided the answer."""
        if self.assignment is None or self.tenant is None:
            return None
        return Exposure(
            self.id,
            self.tenant,
            self.assignment,
            self.at,
            failed=self.failed,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=self.seconds,
            cut=self.cut,
        )
