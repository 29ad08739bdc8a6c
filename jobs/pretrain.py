"""Pre-training: a model learns from plain text alone, by one of six objectives.

    clm              − Σ_t log p(x_t | x_<t)                                 GPT: lib/methods/pretraining/clm.py
    prefix_lm        the same after a prefix that is read in both directions   T5's prefix LM: prefix_lm.py
    mlm              − Σ_{t ∈ M} log p(x_t | x̃)                              BERT, RoBERTa: mlm.py
    nsp              mlm, and whether a segment follows another                BERT, ALBERT: nsp.py
    electra          which tokens a generator has replaced                     ELECTRA: electra.py
    span_corruption  the masked spans of a text                                T5, UL2: span_corruption.py

Texts are joined and cut into blocks of train.max_length tokens. Masks are drawn anew in each epoch, from a hash of (seed, epoch, block):
they are the same on any number of workers and after a resume.

    python jobs/pretrain.py --config configs/pretrain/clm.yaml
    python jobs/pretrain.py --config configs/pretrain/mlm.yaml
    python jobs/pretrain.py --config configs/pretrain/clm.yaml --model.base runs/clm --model.size null --model.vocab_size null --run runs/clm-2
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.pretraining.build import trainer

    return trainer(job, args, inputs)


def check(job, args):
    from lib.methods.pretraining.check import check

    check(job, args)


STAGE = Stage(
    name="pretrain",
    config="lib.methods.pretraining.config:PretrainConfig",
    rows=("text",),
    makes={
        "clm": "causal_lm",
        "prefix_lm": "causal_lm",
        "mlm": "masked_lm",
        "nsp": "masked_lm",
        "electra": "discriminator",
        "span_corruption": "seq2seq_lm",
    },
    starts_from=None,
    check=check,
    build=build,
)

if __name__ == "__main__":
    main(STAGE)
