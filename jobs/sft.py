"""Supervised fine-tuning: maximise the likelihood of the answers (and only of the answers).

L(θ) = − Σ_t log π_θ(y_t | x, y_<t)        Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3

python jobs/sft.py --config configs/sft.yaml
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    """A chat row becomes one example per assistant turn, with everything before it as the prompt; plain text is one example."""
    from trl import SFTTrainer

    from lib import data
    from lib.models import load

    train, heldout = data.per_answer(inputs.train), data.per_answer(inputs.heldout)
    return SFTTrainer(args=args, train_dataset=train, eval_dataset=heldout, **load.for_trainer(job.model, args))


STAGE = Stage(name="sft", config="trl.trainer.sft_config:SFTConfig", rows=("chat", "text"), build=build)

if __name__ == "__main__":
    main(STAGE)
