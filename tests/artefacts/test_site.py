"""Ranks of a site: those that vLLM knows."""

from __future__ import annotations

import pytest

from vllm_edit.artefacts.site import LEGAL_RANKS, check_rank, least_rank
from vllm_edit.errors import EditError


@pytest.mark.parametrize(("columns", "rank"), [(1, 1), (2, 8), (8, 8), (300, 320), (512, 512), (1000, 512)])
def test_columns_get_the_least_rank_that_holds_them_or_the_greatest(columns: int, rank: int) -> None:
    assert least_rank(columns) == rank
    check_rank(rank)


def test_a_rank_that_vllm_does_not_know_is_refused_with_those_it_knows() -> None:
    with pytest.raises(EditError, match=rf"one of {LEGAL_RANKS[0]}, .*, {LEGAL_RANKS[-1]} \(vLLM's\); got 24"):
        check_rank(24)
