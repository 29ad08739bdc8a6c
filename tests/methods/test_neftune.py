"""NEFTune's noise has the paper's size and depends only on seed, step and row, so neither batches nor a resume change a step."""

import math

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.methods import neftune
from lib.stage.training_arguments import arguments
from lib.stage.worker import save_work
from tests import stages


def test_the_noise_is_uniform_with_the_papers_size_for_each_document():
    import torch

    ids, like = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]), torch.zeros(2, 4, 100)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    got = neftune.noise(5.0, "s 1", like, ids, mask)
    for row, length in ((0, 4), (1, 2)):
        size = 5 / math.sqrt(length * 100)
        values = got[row, :length]
        assert 0.95 * size < values.abs().max() <= size and abs(values.mean()) < 4 * size / math.sqrt(3 * length * 100)
        assert values.var().item() == pytest.approx(size**2 / 3, rel=0.2)
    assert (got[1, 2:] == 0).all()
    packed = neftune.noise(
        5.0,
        "s 1",
        torch.zeros(1, 6, 100),
        torch.cat([ids[0], ids[1, :2]])[None],
        None,
        torch.tensor([[0, 1, 2, 3, 0, 1]]),
    )
    assert torch.equal(packed[0, :4], got[0]) and torch.equal(packed[0, 4:], got[1, :2])
    assert torch.equal(neftune.noise(5.0, "s 1", torch.zeros(1, 4, 100), ids[:1]), got[:1])
    assert not torch.equal(neftune.noise(5.0, "s 2", like, ids, mask), got)


def trained(
    folder, tiny_model, micro: int, alpha: float | None = 5.0, steps: int = 4, resume: str | None = None, packing=False
):
    """Returns (losses, the trained weights) of an SFT job with noise."""
    train = {
        "max_steps": steps, "logging_steps": 1, "save_steps": 2, "seed": 3, "neftune_noise_alpha": alpha, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "packing": packing, "max_length": 256,
    }  # fmt: skip
    job = Job("unused", "sft", Model(tiny_model), Data(limit=48, heldout_limit=2), train)
    job.scale = Scale(global_batch=8, micro_batch=micro, precision="fp32")
    args, _ = arguments(job, stages.stage("sft").config, 1, str(folder))
    trainer = stages.built(job, args)
    save_work(trainer, "ddp")
    trainer.train(resume_from_checkpoint=resume)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    heldout = trainer.evaluate()["eval_loss"]
    assert heldout == trainer.evaluate()["eval_loss"]  # no noise
    return losses, {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.mark.slow
def test_batches_and_a_resume_do_not_change_a_step(tiny_model, tmp_path):
    import torch

    losses, weights = trained(tmp_path / "a", tiny_model, 8)
    assert trained(tmp_path / "b", tiny_model, 2)[0] == pytest.approx(losses, rel=1e-5)
    again, resumed = trained(tmp_path / "a", tiny_model, 8, resume=str(tmp_path / "a/checkpoint-2"))
    assert again == losses and all(torch.equal(resumed[k], v) for k, v in weights.items())
    without, _ = trained(tmp_path / "c", tiny_model, 8, None)
    assert without != pytest.approx(losses, rel=1e-4)
    trained(tmp_path / "d", tiny_model, 2, packing=True)
