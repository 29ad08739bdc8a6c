"""The interval over seeds and rows."""

import numpy as np
import pytest

from lib.evals.statistics.two_way import difference


def drawn(rng, seeds: int, blocks: int, seed_sd: float, block_sd: float, rest_sd: float) -> list[list[float]]:
    """Sums of blocks of 5 tokens whose mean is 0 in expectation."""
    means = (
        rng.normal(0, seed_sd, (seeds, 1))
        + rng.normal(0, block_sd, (1, blocks))
        + rng.normal(0, rest_sd, (seeds, blocks))
    )
    return (5 * means).tolist()


@pytest.mark.parametrize("sds", [(1.0, 0.0, 0.1), (0.0, 1.0, 0.1), (1.0, 1.0, 1.0), (0.3, 2.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_difference_whatever_it_varies_with(sds, seeds):
    """1,000 experiments; 0.93 is 95% less three standard errors. Both sides vary: the difference is of variance 2 × that of one."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        a, b = drawn(rng, seeds, 12, *sds), drawn(rng, seeds, 12, *sds)
        e = difference(a, b, [5.0] * 12)
        covered += e.low <= 0 <= e.high
    assert covered / 1000 >= 0.93


def test_the_value_is_the_mean_per_token():
    e = difference([[2.0, 6.0], [2.0, 6.0]], [[1.0, 3.0], [2.0, 2.0]], [1.0, 3.0])
    assert e.value == pytest.approx((-4 + -4) / 2 / 4)


def test_equal_runs_differ_by_exactly_0():
    same = [[1.0, 2.0], [3.0, 1.5]]
    e = difference(same, same, [1.0, 2.0])
    assert (e.value, e.low, e.high) == (0.0, 0.0, 0.0)


def test_one_seed_has_no_interval():
    e = difference([[1.0, 2.0]], [[2.0, 2.0]], [1.0, 1.0])
    assert (e.value, e.low, e.high) == (0.5, None, None)


def test_with_one_block_the_rows_count_as_fixed():
    """scipy's paired t-test is the same computation."""
    from scipy import stats

    a, b = [1.0, 2.0, 4.0], [1.5, 2.2, 4.9]
    e, t = difference([[x] for x in a], [[x] for x in b], [1.0]), stats.ttest_rel(b, a).confidence_interval()
    assert (e.low, e.high) == pytest.approx((t.low, t.high))
