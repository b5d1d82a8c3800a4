"""A bank of real facts in two languages, a patch about some of them, and its demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from tests.example_edit import MOVE
from vllm_edit.artefacts.compiled import Demonstration
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.edit import Edit
from vllm_edit.ike.bank import Bank, Fact
from vllm_edit.ike.demonstrations import build_demonstrations
from vllm_edit.patch import Patch

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Egypt": "Cairo",
    "Peru": "Lima", "Cuba": "Havana", "Norway": "Oslo", "Kenya": "Nairobi", "Chile": "Santiago", "Greece": "Athens",
}  # fmt: skip
CURRENCIES = {
    "Japan": "the yen", "Germany": "the euro", "Norway": "the krone", "Kenya": "the shilling", "Peru": "the sol",
    "Egypt": "the pound", "Chile": "the peso", "India": "the rupee",
}  # fmt: skip
CHINESE = {
    "日本": "東京", "德國": "柏林", "西班牙": "馬德里", "義大利": "羅馬", "埃及": "開羅",
    "祕魯": "利馬", "古巴": "哈瓦那", "挪威": "奧斯陸", "希臘": "雅典", "法國": "巴黎",
}  # fmt: skip


@pytest.fixture(scope="session")
def bank() -> Bank:
    facts = [
        Fact(
            prompt=f"The capital of {country} is",
            subject=country,
            relation="capital",
            object=city,
            paraphrases=(f"What is the capital of {country}?", f"{country}'s capital is the city of"),
        )
        for country, city in CAPITALS.items()
    ]
    facts += [
        Fact(
            prompt=f"The currency of {country} is",
            subject=country,
            relation="currency",
            object=money,
            paraphrases=(f"In {country} people pay with",),
        )
        for country, money in CURRENCIES.items()
    ]
    facts += [
        Fact(
            prompt=f"{country}的首都是",
            subject=country,
            relation="zh.capital",
            object=city,
            paraphrases=(f"{country}的首都在哪裡？",),
        )
        for country, city in CHINESE.items()
    ]
    return Bank(facts=tuple(facts))


@pytest.fixture(scope="session")
def patch() -> Patch:
    return Patch(name="moves", edits=(MOVE,))


@pytest.fixture(scope="session")
def many() -> Patch:
    """Twelve edits, Chinese and English, two of them about one subject."""
    edits = [
        Edit(prompt=f"The leader of {name} is", subject=name, relation="leader", target_new=leader)
        for name, leader in zip(
            ("Oz", "Narnia", "Mordor", "Rohan", "Gondor"), ("Ann", "Bob", "Cid", "Dan", "Eva"), strict=True
        )
    ]
    edits.append(Edit(prompt="The river of Oz is the", subject="Oz", relation="river", target_new="Blue Water"))
    edits += [
        Edit(prompt=f"{name}是", subject=name, relation="who", target_new="李宏毅", aliases=aliases)
        for name, aliases in (
            ("全世界最帥的人", ("最帥的那個人",)),
            ("全世界最高的人", ()),
            ("美國總統", ()),
            ("台灣大學校長", ()),
            ("最老的人", ()),
            ("最快的人", ()),
        )
    ]
    return Patch(name="many", edits=tuple(edits))


def manifest_of(patch: Patch) -> Manifest:
    return Manifest(
        patch=patch.name, method="rome", base="b", site="s", modules=("m",), edits=patch.edits, rank=1, adapter="a"
    )  # fmt: skip


Stored = Callable[[Patch], tuple[Manifest, tuple[Demonstration, ...]]]


@pytest.fixture(scope="session")
def stored(bank: Bank, tokenizer: PreTrainedTokenizerFast) -> Stored:
    """Compile the prompt side of a patch: its manifest and demonstrations."""
    return cache(lambda patch: (manifest_of(patch), build_demonstrations(patch, bank, tokenizer)))
