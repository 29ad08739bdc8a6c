"""Pruning: removes parts of a model, then heals the rest by distillation from the original model.

Either W ← M ⊙ W with a mask M of 0 and 1, or rows, columns and layers are removed. Then the loss L of jobs/distill.py, with the
original model as the teacher (Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679). Methods and papers: lib/methods/pruning/methods.py.
The run loads and serves like any other; its reports/prune.md has size, memory, tokens/s and scores (of eval.tasks) before and after.

    python jobs/prune.py --config configs/prune.yaml
    python jobs/prune.py --config configs/prune.yaml --train.method depth --train.keep_channels null --train.keep_layers 20
    python jobs/prune.py --config configs/prune.yaml --train.method wanda --train.keep_channels null --train.pattern 2:4
"""

from lib.methods.distillation import lessons
from lib.methods.pruning import methods
from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from dataclasses import replace

    from lib.methods.pruning import pruned
    from lib.models import load

    smaller = replace(job.model, base=pruned.pruned(job, args))
    trainer = lessons.trainer(job, args, inputs, load.for_trainer(smaller, args))
    if methods.METHODS[args.method].sparse:
        pruned.hold(trainer.model)
    return trainer


def check(job, args):
    methods.check(job, args)
    lessons.check(job, args)


def after(run, job):
    from lib.methods.pruning.report import compare

    return compare(run, job)


STAGE = Stage(
    name="prune",
    config="lib.methods.pruning.config:PruneConfig",
    rows=("chat", "text"),
    names={"teacher": "causal_lm"},
    check=check,
    build=build,
    after=after,
)

if __name__ == "__main__":
    main(STAGE)
