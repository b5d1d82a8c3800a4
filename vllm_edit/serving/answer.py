"""One answered request, as the router fills it in while it goes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vllm_edit.registry.answer_rows import AnswerEntry
from vllm_edit.rollout.assignment import Assignment
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.serving.alias import NO_SUBJECT
from vllm_edit.serving.scope import Narrowed
from vllm_edit.serving.usage import Ended, Usage


def new_id() -> str:
    """An id that cannot be guessed: whoever holds it was given it."""
    return f"edit-{secrets.token_hex(16)}"


@dataclass
class Answer:
    """What becomes an `AnswerEntry`, whose fields these are.

    assignment: set where a rollout decided alone, which makes it an exposure. prompt: only if the operator asks for it.
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
        """The answer that a choice begins. key: the id of the caller's; generation: of the state that decided."""
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
        """Enter what of the patch was in scope. With nothing in scope, the base answered."""
        self.subjects, self.groups = narrowed.subjects, narrowed.groups
        if not narrowed.subjects:
            self.adapter, self.reason = None, NO_SUBJECT
        elif self.mode == "weights":
            self.adapter = narrowed.adapter

    def end(self, usage: Usage) -> None:
        """Enter how it ended and what it took."""
        self.status, self.ended, self.seconds = usage.status, usage.ended, usage.seconds
        self.first_token_seconds = usage.first_token_seconds
        self.prompt_tokens, self.completion_tokens = usage.tokens()

    def refuse(self, status: int, seconds: float) -> None:
        """Enter that the router refused it: what was decided cannot be applied, to this request or at all."""
        self.status, self.ended, self.router_seconds = int(status), "refused", seconds

    @property
    def failed(self) -> bool:
        """The server's fault, or the arm's. A client that went away has not been failed."""
        return self.ended in ("broken", "refused") or (self.status is not None and self.status >= 500)

    def entry(self, server: str) -> AnswerEntry:
        """The answer as it is now, for the log."""
        told = {name: value for name, value in vars(self).items() if name != "assignment"}
        rollout = None if self.assignment is None else self.assignment.rollout
        return AnswerEntry(**told, rollout=rollout, server=server)

    def exposure(self) -> Exposure | None:
        """What its rollout counts; None for an answer that no rollout decided."""
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
        )
