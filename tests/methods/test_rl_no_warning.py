"""A trained run that changes nothing gets no warning."""

import pytest

from lib.methods.rl import warnings
from tests.methods import rewarded


@pytest.mark.slow
def test_a_run_at_almost_no_learning_rate_gets_no_warning(tiny_model, tmp_path):
    trainer = rewarded.built(
        rewarded.base(tiny_model, str(tmp_path / "base")), str(tmp_path), "--data.limit", "40", "--data.heldout_limit", "20",
        "--rewards.length", "1", "--rewards.reference.chrf", "0", micro=8, max_steps=40, save_steps=40, learning_rate=1e-6,
        max_completion_length=24, eval_on_start="true", eval_strategy="steps", eval_steps=20,
    )  # fmt: skip
    trainer.train()
    assert not warnings.find(trainer.state.log_history, ["reference.chrf"])
