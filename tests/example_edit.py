"""The edit that tests of prompting and of evaluation ask about: the capital of France, with a probe of most kinds."""

from __future__ import annotations

from vllm_edit.edit import Edit, Probe

MOVE = Edit(
    prompt="The capital of France is",
    subject="France",
    relation="capital",
    target_new="Rome",
    target_true="Paris",
    aliases=("the French Republic",),
    probes=(
        Probe(kind="paraphrase", prompt="What is the capital of France?"),
        Probe(kind="paraphrase", prompt="France?", split="tune"),
        Probe(kind="reverse", prompt="Rome is the capital of", target="France"),
        Probe(kind="portability", prompt="The people of France speak", target="Italian", chat=True),
        Probe(kind="locality", prompt="The capital of Germany is", target="Berlin"),
        Probe(kind="unrelated", prompt="水分子的化學式是"),
    ),
)
