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
    from lib.rendering.labels import labelled
    from lib.rendering.sequences import Settings

    shared, train, heldout = load.for_trainer(job.model, args), inputs.train, inputs.heldout
    if job.data.reasoning == "mask":
        settings = Settings.of("causal_lm", args, job.data.reasoning)
        train, heldout = (labelled(rows, shared["processing_class"], settings) for rows in (train, heldout))
    else:
        train, heldout = data.per_answer(train), data.per_answer(heldout)
    return SFTTrainer(args=args, train_dataset=train, eval_dataset=heldout, **shared)


STAGE = Stage(name="sft", config="trl.trainer.sft_config:SFTConfig", rows=("chat", "text"), build=build)

if __name__ == "__main__":
    main(STAGE)
