"""Build a rollout from user input, in which names of patches may be short."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Arm, Side, split_reference
from vllm_edit.rollout.audience import parse_range
from vllm_edit.rollout.buckets import buckets_of
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.metric import parse_metric
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import shadow_of
from vllm_edit.rollout.sticky import Source, Stickiness

Resolve = Callable[[str], str]
"""Maps a name from user input to a compiled patch's full name."""


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
    limits: Sequence[str] = (),
    users_range: str | None = None,
    probed: Callable[[str], bool] = lambda _: True,
    shadow: float | None = None,
    shadow_texts: bool = False,
) -> Rollout:
    """Build a rollout from user input.

    Args:
        name: Name of the rollout.
        tenant: The tenant whose requests are split.
        resolve: Resolves names of patches.
        served: Returns what a tenant is served now, the default control.
        treatment: Treatment arm, e.g. `capital`, `capital:ike` or `base`.
        control: Control arm; None for `served(tenant)`. Create the rollout with `control_served` then, because another
            patch may be published meanwhile.
        split: Percentage on treatment, of the sticky keys that take part.
        metrics: Metrics, e.g. `solved` or `rating:1..5`.
        users: Users that are always on one side.
        order: Sources of the sticky key, in order.
        user_header: Header with the user's name.
        session_header: Header with the session's name.
        salt: Salt of the hashes; None for a random salt.
        alpha: Error probability over all metrics, and over all limits.
        users_range: Range of the users that may take part, e.g. `0..40` per cent; None for all.
        limits: Limits, e.g. `errors=kill` or `slower:2s=warn`.
        probed: Returns whether a compiled patch has locality probes.
        shadow: Percentage of the answers that the other arm repeats; None for none.
        shadow_texts: Whether both texts are stored.

    Raises:
        EditError: a part is invalid.
    """
    made = Rollout(
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
        limits=tuple(parse_limit(text) for text in limits),
        audience=None if users_range is None else parse_range(users_range),
        shadow=shadow_of(shadow, texts=shadow_texts),
    )
    asked = next((limit for limit in made.limits if limit.name == "locality"), None)
    if asked is not None and made.treatment.name is not None and not probed(made.treatment.name):
        raise EditError(
            f"limit {asked}: {made.treatment.name} has no locality probes to ask; give its edits some, or leave it out"
        )
    return made


def _arm(text: str, resolve: Resolve) -> Arm:
    reference, mode = split_reference(text)
    return Arm(mode, None if reference is None else resolve(reference))
