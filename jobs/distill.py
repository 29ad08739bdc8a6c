"""Distillation: a smaller or cheaper student learns a teacher's distributions, or its answers.

L = α · hard + (1 − α) · T² · D(teacher ‖ student)        Hinton et al. 2015, https://arxiv.org/abs/1503.02531
α is `train.hard_weight`, T `train.soft_temperature`, D `train.divergence`: lib/methods/distillation/trainer.py.

The student is `model.base`, or, with `train.keep_layers`, a copy of it with fewer layers.

    python jobs/distill.py --config configs/distill.yaml --train.teacher runs/quickstart/sft
    python jobs/distill.py --config configs/distill.yaml --train.top_k 64                   # run the teacher once, then unload it
    python jobs/distill.py --config configs/distill.yaml --train.answers teacher            # on the teacher's answers
    python jobs/distill.py --config configs/distill.yaml --train.on_policy 0.5              # half on the student's own answers
"""

from lib.methods.distillation import lessons
from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.distillation import trainer
    from lib.models import load

    shared = load.for_trainer(job.model, args)
    if args.keep_layers:
        shared["model"] = trainer.made_smaller(shared["model"], args)
    return lessons.trainer(job, args, inputs, shared)


STAGE = Stage(
    name="distill",
    config="lib.methods.distillation.trainer:DistillConfig",
    rows=("chat", "text"),
    names={"teacher": "causal_lm"},
    check=lessons.check,
    build=build,
)

if __name__ == "__main__":
    main(STAGE)
