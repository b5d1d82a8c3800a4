"""A rollout as somebody writes it down, with names that may be short, made into one that can be entered."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from vllm_edit.rollout.arm import Arm, Side, split_reference
from vllm_edit.rollout.metric import parse_metric
from vllm_edit.rollout.rollout import Rollout, buckets_of
from vllm_edit.rollout.sticky import Source, Stickiness

Resolve = Callable[[str], str]
"""From a name as somebody writes it to a compiled patch's full name."""


def draft(
    name: str,
    tenant: str,
    *,
    resolve: Resolve,
    served: Callable[[str], Arm],
    treatment: str,
    control: str | None,
    split: float,
    metrics: Sequence[str],
    users: Mapping[str, Side],
    order: tuple[Source, ...],
    user_header: str,
    session_header: str,
    salt: str | None,
    alpha: float,
) -> Rollout:
    """served: what a tenant is served, which is the control unless another is said. split: per cent on treatment.

    Raises:
        EditError: with every part that cannot be.
    """
    return Rollout(
        name,
        tenant,
        served(tenant) if control is None else _arm(control, resolve),
        _arm(treatment, resolve),
        salt or secrets.token_hex(8),
        buckets_of(split),
        overrides=dict(users),
        sticky=Stickiness(order, user_header, session_header),
        metrics=tuple(parse_metric(text) for text in metrics),
        alpha=alpha,
    )


def _arm(text: str, resolve: Resolve) -> Arm:
    reference, mode = split_reference(text)
    return Arm(mode, None if reference is None else resolve(reference))
