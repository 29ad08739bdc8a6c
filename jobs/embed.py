"""Contrastive training of an embedding model: texts that belong together get similar vectors.

    mnrl      − log softmax_j (cos(a_i, p_j) / τ)_i over the positives and negatives of all rows of a step      InfoNCE
    triplet   max(0, cos(a, n) − cos(a, p) + margin)                                                            FaceNet
    simcse    mnrl of a text with itself, each time with another dropout                                        SimCSE

lib/methods/embedding/losses.py has the papers. The rows of a step are compared with each other, over all workers, so that a step is the
same with any scale.micro_batch and number of workers.

    python jobs/embed.py --config configs/embed.yaml
    python jobs/embed.py --config configs/embed.yaml --data.source pairs.jsonl --model.base runs/mlm
    python jobs/embed.py --config configs/embed.yaml --data.source pairs.jsonl --train.hard_negatives runs/embed
    python jobs/embed.py --config configs/embed.yaml --data.source texts.txt --train.loss simcse
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.embedding.build import trainer

    return trainer(job, args, inputs)


def check(job, args):
    from lib.methods.embedding.check import check

    check(job, args)


def fits(job, args, checked):
    from lib.methods.embedding.check import fits

    fits(args, checked)


STAGE = Stage(
    name="embed",
    config="lib.methods.embedding.config:EmbedConfig",
    rows=("contrastive", "text"),
    makes="encoder",
    starts_from=("encoder", "masked_lm", "discriminator", "causal_lm"),
    may_name={"hard_negatives": "encoder"},
    check=check,
    fits=fits,
    build=build,
)

if __name__ == "__main__":
    main(STAGE)
