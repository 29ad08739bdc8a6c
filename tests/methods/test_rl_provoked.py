"""Runs with a fault that was provoked, trained on the tiny model, and the warnings that they get."""

import pytest

from lib.methods.rl import warnings
from tests.methods import rewarded

RUNS = {
    "still": (1e-6, 1.0, set()),
    "longer": (1e-3, 1.0, {"length explosion"}),
    "shorter": (1e-2, -1.0, {"hacking", "entropy collapse", "equal groups"}),
}
"""{name: (learning rate, weight of the length, the warnings that it must get)}"""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_provoked_fault_is_warned_of(name, tiny_model, tmp_path):
    rate, weight, wanted = RUNS[name]
    trainer = rewarded.built(
        rewarded.base(tiny_model, str(tmp_path / "base")), str(tmp_path), "--data.limit", "40", "--data.heldout_limit", "20",
        "--rewards.length", str(weight), "--rewards.reference.chrf", "0", micro=8, max_steps=40, save_steps=40, learning_rate=rate,
        max_completion_length=24, eval_on_start="true", eval_strategy="steps", eval_steps=20,
    )  # fmt: skip
    trainer.train()
    found = {f.name for f in warnings.find(trainer.state.log_history, ["reference.chrf"])}
    assert wanted <= found and (wanted or not found), found
