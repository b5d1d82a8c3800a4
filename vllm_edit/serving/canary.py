"""Canary probes: the server asks a treatment's locality probes itself, at low priority, beside the requests of clients.

A probe is drawn at random each time, with replacement, so that the results are independent with one mean: the share of
probes whose answer the treatment changes. They pass vLLM's own routes and are prepared as requests of clients are.

The engine is asked one question at a time. With vLLM's `--scheduling-policy priority` a probe has the lowest priority;
else it is asked only while the server answers nobody (vLLM refuses a priority under its default policy).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from vllm_edit.evaluation.judging import unchanged
from vllm_edit.evaluation.questions import Question, keeping_questions
from vllm_edit.json_value import JSONObject
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving import bodies
from vllm_edit.serving.inner_request import answer_of
from vllm_edit.serving.service import Holder, Service

_TOKENS = 24
"""Maximum tokens of an answer: only its first line is compared."""
_PATCHES, _ANSWERS = 16, 4096
_TIMEOUT_S = 30.0
_WITHOUT_ARM = Arm("base")


@dataclass(frozen=True)
class Probed:
    """A probe that was asked. probe: the beginning of the SHA-256 of its prompt."""

    probe: str
    changed: bool


class Canary:
    """Asks locality probes. prioritised: the engine schedules by priority. chat: the model has a chat template."""

    def __init__(self, holder: Holder, *, prioritised: bool, chat: bool, seed: int | None = None) -> None:
        self._holder, self._prioritised, self._chat = holder, prioritised, chat
        self._random = random.Random(seed)  # seeded by the operating system by default
        self._salt = secrets.token_hex(16)  # of the prefix cache: a client's request never shares a probe's prompt
        self._probes = LRUCache[str, Sequence[Question]](_PATCHES)
        self._base_answers = LRUCache[tuple[str, bool], str](_ANSWERS)
        self._asking = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """True if a probe may be asked now."""
        service = self._holder.service
        return service is not None and (self._prioritised or not service.answers.running) and not self._asking.locked()

    async def ask(self, rollout: Rollout) -> Probed | None:
        """Ask one probe of the rollout's treatment; None if it has no probes.

        Raises:
            EditError: the treatment cannot be applied, or the engine did not answer.
        """
        service, name = self._holder.service, rollout.treatment.name
        if service is None or name is None:
            return None
        async with self._asking, asyncio.timeout(_TIMEOUT_S):
            questions = await self._questions(service, name)
            if not questions:
                return None
            question = self._random.choice(questions)
            key = (question.prompt, question.chat)
            before = self._base_answers.get(key)
            if before is None:
                before = self._base_answers[key] = await self._answer(service, question, rollout.tenant, _WITHOUT_ARM)
            after = await self._answer(service, question, rollout.tenant, rollout.treatment)
            digest = hashlib.sha256(question.prompt.encode("utf-8", "surrogatepass")).hexdigest()
            return Probed(digest[:16], not unchanged(after, before))

    async def _questions(self, service: Service, name: str) -> Sequence[Question]:
        if name not in self._probes:
            manifest = await asyncio.to_thread(service.store.manifest, name)
            self._probes[name] = keeping_questions(manifest.edits, chat=self._chat)
        return self._probes[name]

    async def _answer(self, service: Service, question: Question, tenant: str, arm: Arm) -> str:
        route = bodies.CHAT if question.chat else bodies.COMPLETIONS
        body: JSONObject = {"temperature": 0, "max_tokens": _TOKENS}
        if question.chat:
            body["messages"] = [{"role": "user", "content": question.prompt}]
        else:
            body["prompt"] = question.prompt
        choice = Choice(arm.mode, arm.name, tenant, "CANARY")
        text, _ = await answer_of(
            self._holder,
            service,
            choice,
            route,
            body,
            salt=self._salt,
            prioritised=self._prioritised,
            expected="an answer to a locality probe",
        )
        return text
