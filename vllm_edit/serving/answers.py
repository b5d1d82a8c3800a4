"""What answered each request: the log behind the ids that the server issues."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.alias import NO_SUBJECT
from vllm_edit.serving.scope import Narrowed

logger = logging.getLogger(__name__)


def new_id() -> str:
    """An id that cannot be guessed: whoever holds it was given it."""
    return f"edit-{secrets.token_hex(16)}"


@dataclass
class Answer:
    """One answered request. `status` is known when the answer begins.

    adapter: what was in the engine, or, in mode ike, whose demonstrations were used; None for the base alone.
    patch: the compiled patch that was asked for or published.
    subjects, groups: of a patch with scope subject, what of it answered (names, and numbers of its key groups); None
    where all of the patch did.
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
    subjects: tuple[str, ...] | None = None
    groups: tuple[int, ...] | None = None
    ike_tokens: int = 0
    status: int | None = None
    router_seconds: float = 0.0
    time: float = field(default_factory=time.time)

    @classmethod
    def of(cls, id: str, route: str, asked: str | None, choice: Choice) -> Answer:
        adapter = choice.adapter
        return cls(id, route, asked, choice.tenant, adapter, choice.mode, choice.arm, choice.reason, patch=adapter)

    def narrow(self, narrowed: Narrowed) -> None:
        """Enter what of the patch was in scope. With nothing in scope, the base answered."""
        self.subjects, self.groups = narrowed.subjects, narrowed.groups
        if not narrowed.subjects:
            self.adapter, self.reason = None, NO_SUBJECT
        elif self.mode == "weights":
            self.adapter = narrowed.adapter

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class AnswerLog:
    """The last `limit` answers in memory; each also goes to the module's logger when its status is known."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def add(self, answer: Answer) -> None:
        self._answers[answer.id] = answer
        while len(self._answers) > self._limit:
            self._answers.popitem(last=False)

    def finish(self, answer: Answer, status: int) -> None:
        answer.status = status
        logger.info("answer %s", answer.as_dict())

    def get(self, id: str) -> Answer | None:
        return self._answers.get(id)
