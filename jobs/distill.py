"""Distillation: a smaller or cheaper student learns a teacher's distributions, or its answers.

L = α · hard + (1 − α) · T² · D(teacher ‖ student)        Hinton et al. 2015, https://arxiv.org/abs/1503.02531
α is `train.hard_weight`, T `train.soft_temperature`, D `train.divergence`: lib/distillation.py.

The student is `model.base`; with `train.keep_layers` it is made of it by leaving layers out.

    python jobs/distill.py --config configs/distill.yaml --train.teacher runs/quickstart/sft
    python jobs/distill.py --config configs/distill.yaml --train.top_k 64                   # the teacher is read once, and let go
    python jobs/distill.py --config configs/distill.yaml --train.answers teacher            # on its answers
    python jobs/distill.py --config configs/distill.yaml --train.on_policy 0.5              # on the student's own
"""

from lib import lessons
from lib.launch import main


def build(job, args):
    from lib import distillation, models

    shared = models.for_trainer(job.model, args)
    if args.keep_layers:
        shared["model"] = distillation.made_smaller(shared["model"], args)
    return lessons.trainer(job, args, shared)


if __name__ == "__main__":
    main(build, "lib.distillation:DistillConfig", rows=("chat", "text"), models=("teacher",), check=lessons.check)
