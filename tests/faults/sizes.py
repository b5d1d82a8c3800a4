"""How much the fault tests try: a short version among the other tests, the full one by `make test-faults`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """kills: processes killed, over each kind of database. damages: flips and cuts of each kind of file."""

    kills: int
    damages: int


SHORT = Sizes(kills=12, damages=20)
FULL = Sizes(kills=1000, damages=500)
