"""Fine-tunes an encoder to classify texts or pairs of texts, or to rate pairs, as BERT is used.

    rows with a label    − log softmax(z)_y of the row's class     sentiment, topics, NLI (Devlin et al. 2018, section 4.1)
    pairs with a score   (z − y)²                                  STS

Classes are the labels of the training rows. A new head reads the base's vector of the first token, or of the last one if the base is a
decoder.

    python jobs/classify.py --config configs/classify.yaml
    python jobs/classify.py --config configs/classify.yaml --data.source nli.jsonl --model.base runs/mlm
    python jobs/classify.py --config configs/classify.yaml --data.source sts.jsonl --train.num_train_epochs 3
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.classification.build import trainer

    return trainer(job, args, inputs)


def check(job, args):
    from lib.methods.classification.check import check

    check(job, args)


def fits(job, args, checked):
    from lib.methods.classification.check import fits

    fits(checked)


STAGE = Stage(
    name="classify",
    config="lib.methods.classification.config:ClassifyConfig",
    rows=("classified", "pair"),
    makes="classifier",
    starts_from=("encoder", "masked_lm", "discriminator", "classifier", "causal_lm"),
    check=check,
    fits=fits,
    build=build,
)

if __name__ == "__main__":
    main(STAGE)
