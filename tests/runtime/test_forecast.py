"""The predicted time left of a chain, from literal metrics: first from its steps' durations elsewhere, then from this machine's speed."""

import json

import pytest

from lib.run import Run
from lib.runtime.forecast import TAIL, Forecast


def run(tmp_path, *rows: tuple[float, int]) -> Run:
    """A run that logged a loss at (time, step) of 50 steps."""
    made = Run(str(tmp_path / "run"))
    lines = [json.dumps({"time": t, "step": s, "loss": 1.0, "max_steps": 50}) + "\n" for t, s in rows]
    made.write_text("metrics.jsonl", "".join(lines))
    return made


def test_before_the_first_steps_it_is_what_the_yaml_says(tmp_path):
    chain = Forecast({"sft": 2, "dpo": 3})
    assert chain.left("sft", run(tmp_path), 1000, 1030) == (90 + 180, [], False)
    assert "elsewhere" in chain.line("sft", run(tmp_path), 1000, 1030)


def test_the_pace_of_the_first_steps_is_carried_over_to_the_others(tmp_path):
    """Training takes 2 s per step, 100 s in all: with the time before and after it, the chain's step takes 30 + 98 + 8 s (120 s
    elsewhere)."""
    chain = Forecast({"sft": 2, "dpo": 3})
    whole = 30 + 2 * 49 + TAIL * 100
    seconds, unknown, measured = chain.left("sft", run(tmp_path, (1030, 1), (1034, 3)), 1000, 1034)
    assert measured and not unknown
    assert seconds == pytest.approx(whole - 34 + 180 * whole / 120)
    assert chain.line("sft", run(tmp_path, (1030, 1), (1034, 3)), 1000, 1034).startswith(
        "About 5 minutes left in total"
    )


def test_finished_steps_count_and_earlier_ones_cost_nothing(tmp_path):
    chain = Forecast({"sft": 2, "reward": 2, "dpo": 3, "eval": 4})
    chain.finished("sft", None)
    chain.finished("reward", 240.0)  # twice as slow
    assert chain.left("dpo", run(tmp_path), 0, 60) == (pytest.approx(360 - 60 + 480), [], True)


def test_rows_of_an_earlier_try_say_nothing(tmp_path):
    assert Forecast({"sft": None}).left("sft", run(tmp_path, (900, 1), (950, 2)), 1000, 1010) is None


def test_without_minutes_it_says_what_it_can(tmp_path):
    chain = Forecast({"sft": None, "dpo": None})
    text = chain.line("sft", run(tmp_path, (1030, 1), (1034, 3)), 1000, 1034)
    assert text.startswith("About 2 minutes left") and "and then dpo" in text
    seconds, unknown, _ = chain.left("sft", run(tmp_path, (1030, 1), (1034, 3)), 1000, 1034)
    assert seconds == pytest.approx(94 + TAIL * 100) and unknown == ["dpo"]
