"""When the ranks of a job on a cluster synchronise, and what they decide then."""

from types import SimpleNamespace

from ray.train import PreemptionInfo

from lib.run import Run
from lib.runtime.cluster_signals import Stop
from lib.stage.cluster_callback import MOST_STEPS, ClusterCallback


def at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=100)


def callback(tmp_path) -> ClusterCallback:
    made = ClusterCallback(Run(str(tmp_path)), "sft")
    made.met = made.began = (0.0, 0)
    made.listener = SimpleNamespace(stop=None)
    return made


def test_ranks_synchronise_about_every_two_seconds(tmp_path):
    made = callback(tmp_path)
    assert made.decide(at(10), None, now=1.0) == (30, None, None)  # 10 steps a second: 20 in two seconds
    assert made.decide(at(11), None, now=31.0) == (12, None, None)  # 30 s a step: after each one
    assert made.decide(at(12), None, now=31.0) == (12 + MOST_STEPS, None, None)  # no time between them: the upper bound


def test_a_node_that_is_going_away_is_a_reason_to_save_once(tmp_path):
    made, going = callback(tmp_path), PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1, 3]})
    assert made.decide(at(10), going, now=1.0) == (30, "ranks 1, 3 are on nodes that are going away.", None)
    assert made.decide(at(30), going, now=3.0) == (50, None, None)


def test_a_spent_budget_saves_and_stops_with_what_the_rest_would_cost(tmp_path):
    made = callback(tmp_path)
    made.listener.stop = Stop("The budget is spent.", deadline=100.0, usd_per_hour=3.6)
    _, saves, stops = made.decide(at(10), None, now=5.0)
    assert saves == "The budget is spent."
    assert (
        stops == f"{saves} Saved at step 10 of 100; the other 90, at 0.5 s and $3.6 an hour, cost about $0.04 more."
    )  # $0.045
