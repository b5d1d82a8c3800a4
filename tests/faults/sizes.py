"""Sizes of the fault tests: a short version among the other tests, the full version by `make test-faults`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """kills: processes killed, over each kind of database. damages: flips and cuts of each kind of file. rooms: how
    often a disk is filled for each kind of write, to leave more room each time. churn_seconds: of publications and
    rollbacks under load. requests: hostile ones of each caller. routed: requests of so many tenants.
    hostile_files: commands that are given one, in this process. hostile_processes: in processes of their own.
    """

    kills: int
    damages: int
    rooms: int
    churn_seconds: float
    requests: int
    tenants: int
    routed: int
    hostile_files: int
    hostile_processes: int


SHORT = Sizes(
    kills=12,
    damages=20,
    rooms=7,
    churn_seconds=8,
    requests=60,
    tenants=100,
    routed=10_000,
    hostile_files=90,
    hostile_processes=3,
)
FULL = Sizes(
    kills=500,
    damages=500,
    rooms=48,
    churn_seconds=600,
    requests=10_000,
    tenants=1000,
    routed=1_000_000,
    hostile_files=2_000,
    hostile_processes=100,
)
