"""The closed formulas of waste compared with a simulation of seeded random preemptions."""

import math
import random

import pytest

from cluster.estimate import preemption


def play(work_s, interval_s, save_s, restart_s, gone_s, mtbf_s, rng) -> tuple[float, float]:
    """Returns (seconds until the work is done, paid seconds) of one run: pieces are saved, lost, waited for and restarted."""
    total = paid = 0.0
    left, recovering = work_s, False
    until = rng.expovariate(1 / mtbf_s)
    while left > 1e-9:
        piece = (restart_s if recovering else 0.0) + min(interval_s, left) + save_s
        if piece <= until:
            until, recovering = until - piece, False
            total, paid, left = total + piece, paid + piece, left - min(interval_s, left)
        else:
            total, paid = total + until + gone_s, paid + until
            until, recovering = rng.expovariate(1 / mtbf_s), True
    return total, paid


CASES = [
    # work, interval, save, restart, gone, mean time between preemptions
    (36_000, 600, 20, 120, 300, 7_200),
    (36_000, 3_600, 20, 120, 300, 7_200),
    (10_000, 700, 60, 30, 0, 1_000),  # with a shorter last piece
    (5_000, 5_000, 10, 0, 100, 5_000),
]


@pytest.mark.parametrize("case", CASES)
def test_expected_time_is_the_mean_of_many_runs(case):
    rng = random.Random(0)
    runs = [play(*case, rng) for _ in range(4000)]
    e = preemption.expected(*case)
    for expected, played in ((e.seconds, [t for t, _ in runs]), (e.paid_seconds, [p for _, p in runs])):
        mean = sum(played) / len(played)
        error = math.sqrt(sum((x - mean) ** 2 for x in played) / len(played) ** 2)
        assert abs(mean - expected) < 4 * error, (mean, expected, error)
    assert e.wasted == pytest.approx(1 - case[0] / e.paid_seconds)


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(20, 7_200), (60, 1_000), (5, 86_400)])
def test_daly_is_where_the_expected_time_is_least(save_s, mtbf_s):
    best = min(range(5, 40_000, 5), key=lambda tau: math.expm1((tau + save_s) / mtbf_s) / tau)
    assert preemption.daly(save_s, mtbf_s) == pytest.approx(best, rel=0.02, abs=5)
    assert preemption.daly(save_s, mtbf_s) < preemption.young(save_s, mtbf_s)


def test_by_hand():
    assert preemption.young(8, 100) == 40
    assert preemption.daly(300, 100) == 100  # saving takes longer than machines last
    calm = preemption.expected(1_000, 300, 10, 60, 60, math.inf)
    # 300, 300, 300 and 100 s, each saved.
    assert (calm.seconds, calm.paid_seconds, calm.preemptions) == (1_040, 1_040, 0)
    assert calm.wasted == pytest.approx(40 / 1_040)


@pytest.mark.parametrize(
    ("work_s", "count"),
    [(3_000, 1), (3_300, 1), (3_301, 2), (6_600, 2), (6_601, 3)],
)
def test_sessions(work_s, count):
    """An hour's session with 180 s to start has room for 11 pieces of 300 s, each saved in 10 s."""
    assert preemption.sessions(work_s, 300, 10, 180, 3_600) == count


def test_no_session_is_long_enough():
    assert preemption.sessions(7_200, 3_600, 10, 180, 3_600) is None
