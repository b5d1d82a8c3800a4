"""Limits of rollouts, simulated: how often a harmless treatment is stopped, and how soon a harmful one.

    python -m benchmarks.guardrails

In every run each user is put on a side by chance, as the hash does. Each user's first answer fails with the side's
rate. The limits are tested after every user, with the function that servers use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_edit.rollout.difference import difference_sequence
from vllm_edit.rollout.sequential import Array

_AT_ONCE = 100  # runs in memory
EFFECTS = ((0.02, 0.04), (0.02, 0.07), (0.02, 0.12), (0.02, 0.22), (0.02, 0.52), (0.3, 0.4), (0.3, 0.5), (0.3, 0.8))
"""(control, treatment): shares of failed answers."""


@dataclass(frozen=True)
class Simulation:
    """Rollouts with `limits` limits on independent measures, of which only the first differs between the arms.

    Attributes:
        runs: Number of rollouts.
        users: Users in each, of both sides.
        limits: Number of limits; together they have level `alpha`.
        control: Rate of failures on control.
        treatment: The same on treatment, for the first limit; the others have `control` on both sides.
        alpha: The rollouts' alpha.
        share: Share of the users on treatment.
    """

    runs: int
    users: int
    limits: int
    control: float
    treatment: float
    alpha: float
    share: float = 0.5

    def drawn(self, seed: int) -> tuple[NDArray[np.bool_], list[NDArray[np.bool_]]]:
        """Return who is on treatment, [runs, users], and for each limit whose answer failed, [runs, users]."""
        rng = np.random.default_rng(seed)
        shape = (self.runs, self.users)
        treated = rng.random(shape) < self.share
        rates = [self.treatment, *[self.control] * (self.limits - 1)]
        return treated, [rng.random(shape) < np.where(treated, rate, self.control) for rate in rates]


def first_looks(simulation: Simulation, seed: int, level: float | None = None) -> Array:
    """Return for each run [runs] the number of users after which a limit is first exceeded; infinity if none is.

    Args:
        simulation: The rollouts.
        seed: Seed of the draws.
        level: Level of each limit's test; None for the guardrails' own, alpha / limits.
    """
    one_sided = simulation.alpha / simulation.limits if level is None else level
    looks = np.full(simulation.runs, np.inf)
    treated, failures = simulation.drawn(seed)
    for failed in failures:
        for begin in range(0, simulation.runs, _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            values = failed[part].astype(np.float64)
            _, lower, _ = difference_sequence(values, treated[part], 0.0, 1.0, simulation.share, 2 * one_sided)
            above = lower > 0
            first = np.where(above.any(axis=1), above.argmax(axis=1) + 1.0, np.inf)
            looks[part] = np.minimum(looks[part], first)
    return looks


def main() -> None:
    """Print both tables."""
    print("limits  rate  rollouts   users  stopped")
    for limits in (1, 4):
        for rate in (0.5, 0.1, 0.02):
            harmless = Simulation(3_000, 4_000, limits, rate, rate, 0.05)
            stopped = np.isfinite(first_looks(harmless, seed=1)).mean()
            print(f"{limits:6}  {rate:4}  {harmless.runs:8,}  {harmless.users:6,}  {stopped:7.2%}")
    print("\ncontrol  treatment  limits  half stopped after  nine tenths after   (users of both sides)")
    for control, treatment in EFFECTS:
        for limits in (1, 4):
            looks = first_looks(Simulation(300, 24_000, limits, control, treatment, 0.05), seed=2)
            half, most = (np.quantile(looks, share, method="higher") for share in (0.5, 0.9))
            print(f"{control:7.0%}  {treatment:9.0%}  {limits:6}  {half:18,.0f}  {most:17,.0f}")


if __name__ == "__main__":
    main()
