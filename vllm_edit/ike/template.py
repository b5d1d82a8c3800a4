"""The text format of in-context knowledge editing (IKE, arXiv 2305.12740, Table 1).

Shared by all writers of the format: demonstrations, the served prefix, evaluation, and the documents that train atlas
to use a fact from its prompt.
"""

from __future__ import annotations

from vllm_edit.text.prompts import continuation


def fact_text(prompt: str, answer: str) -> str:
    """The fact as a sentence: the edit's prompt completed by its answer."""
    return prompt + continuation(prompt, answer)


def query(fact: str, prompt: str) -> str:
    """The last block: the fact and the prompt to continue."""
    return f"New Fact: {fact}\nPrompt: {prompt}"


def demonstration(fact: str, prompt: str, answer: str) -> str:
    """One answered block, followed by the blank line that separates blocks."""
    return query(fact, prompt) + continuation(prompt, answer) + "\n\n"
