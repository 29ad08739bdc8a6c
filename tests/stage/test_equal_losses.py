"""The operations that lib/models/lm_head.py, lib/models/prefixes.py and lib/models/cpu_lora.py skip change no loss: compares TRL's trainers with and without them."""

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.models import lm_head
from lib.stage.training_arguments import arguments
from lib.stage.worker import save_work
from tests import stages


def losses(stage: str, job: Job, folder, saving: bool) -> tuple[list[float], float]:
    """Returns three training losses and the held-out loss."""
    from trl.trainer import utils

    with pytest.MonkeyPatch.context() as m:
        for name in ("_use_triton", "_ChunkedLogProbFunction"):
            m.setattr(utils, name, getattr(utils, name))
        args, _ = arguments(job, stages.stage(stage).config, 1, str(folder))
        if saving:
            lm_head.project_labelled_only()
        trainer = stages.built(job, args)
        if saving:
            save_work(trainer, job.scale.strategy)
            assert trainer.model.get_base_model().config._attn_implementation == "shared_prefixes"
        trainer.train()
        rows = trainer.state.log_history
        return [r["loss"] for r in rows if "loss" in r], trainer.evaluate()["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "orpo", "simpo"])
def test_the_losses_are_those_of_bare_trl(stage, tiny_model, tmp_path):
    train = {
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_length": 400,
        "save_strategy": "no",
        "seed": 0,
    }
    job = Job(
        run="unused",
        stage=stage,
        model=Model(base=tiny_model, adapter="lora", peft={"r": 4, "target_modules": "all-linear"}),
        data=Data(limit=24, heldout_limit=4),
        train=train | ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]} if stage == "dpo" else {}),
        scale=Scale(global_batch=8, micro_batch=4, precision="fp32"),
    )
    plain, plain_heldout = losses(stage, job, tmp_path / "plain", saving=False)
    saved, saved_heldout = losses(stage, job, tmp_path / "saved", saving=True)
    # KTO's loss depends on the labels within a step.
    assert len(plain) == 3 and (min(plain[1:]) if stage == "kto" else plain[2]) < plain[0]
    assert saved == pytest.approx(plain, rel=1e-5)
    assert saved_heldout == pytest.approx(plain_heldout, rel=1e-5)
