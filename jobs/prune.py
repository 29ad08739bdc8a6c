"""Pruning: parts of a model are taken away, and what is left is healed by distillation from it.

W ← M ⊙ W with M of 0 and 1, or rows, columns and layers taken out for good; then L of jobs/distill.py, with the model as it was
as teacher. Methods and papers: lib/prune/methods.py. Prune, then distil: Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679.
The run loads and serves like any other; its reports/prune.md has size, memory, tokens/s and scores (of eval.tasks) before and after.

    python jobs/prune.py --config configs/prune.yaml
    python jobs/prune.py --config configs/prune.yaml --train.method depth --train.keep_channels null --train.keep_layers 20
    python jobs/prune.py --config configs/prune.yaml --train.method wanda --train.keep_channels null --train.pattern 2:4
"""

from lib import lessons
from lib.launch import main
from lib.prune import methods


def build(job, args):
    from dataclasses import replace

    from lib import models
    from lib.prune import pruned

    smaller = replace(job.model, base=pruned.pruned(job, args))
    trainer = lessons.trainer(job, args, models.for_trainer(smaller, args))
    if methods.METHODS[args.method].sparse:
        pruned.hold(trainer.model)
    return trainer


def check(job, args):
    methods.check(job, args)
    lessons.check(job, args)


def after(run, job):
    from lib.prune.report import compare

    return compare(run, job)


if __name__ == "__main__":
    main(build, "lib.prune.config:PruneConfig", rows=("chat", "text"), models=("teacher",), check=check, after=after)
