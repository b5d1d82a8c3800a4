"""Numbers on a command line: `--count 24`, `--sizes 1,10,100`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def numbers(kind: type[N]) -> Callable[[str], list[N]]:
    """Return argparse's parser of such an option: one or more positive numbers, separated by commas."""

    def read(text: str) -> list[N]:
        try:
            found = [kind(part) for part in text.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < value < math.inf for value in found):
            raise argparse.ArgumentTypeError(f"expected positive numbers between commas, such as 1,10; got {text!r}")
        return found

    return read


def count(text: str) -> int:
    """What argparse reads a number of things with: at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return int(text)
