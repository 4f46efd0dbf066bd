"""A short run of the chaos; `make chaos` makes long ones."""

import pytest
from chaos import PLANTED, chaos


def test_chaos_finds_no_call_that_was_lost_or_made_twice() -> None:
    with chaos(seed=1) as running:
        running.make_calls(8)
        running.make_fan_out("fan_out", 20)

    assert running.report.violations == []
    assert running.report.faults


@pytest.mark.parametrize("planted", PLANTED)
def test_chaos_finds_a_planted_defect(planted: str) -> None:
    # With the first of these seeds, many requests get 504, and start all the same.
    assert any(violations(seed, planted) for seed in range(17, 22))


def violations(seed: int, planted: str) -> list[str]:
    """What a short run finds in a package with a defect."""
    with chaos(seed, planted) as running:
        running.make_calls(20)
    return running.report.violations
