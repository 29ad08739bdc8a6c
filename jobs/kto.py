"""KTO: learn from answers labelled wanted or unwanted, one at a time and without pairs, held to a reference by β.

    L(θ) = E[λ_D (1 − σ(β (r − z₀)))] over wanted answers, E[λ_U (1 − σ(β (z₀ − r)))] over unwanted ones
    r = log π_θ(y|x)/π_ref(y|x),  z₀ estimates KL(π_θ‖π_ref)
    Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4.  β is `train.beta`, λ `train.desirable_weight` and
    `train.undesirable_weight`.

Preference pairs are read as one wanted and one unwanted answer. How z₀ is estimated: lib/kto.py.

    python jobs/kto.py --config configs/kto.yaml --model.base runs/quickstart/sft
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    if args.loss_type == "kto" and job.scale.global_batch < 2:
        raise ValueError("scale.global_batch: KTO compares the answers of a step with one another. Use 2 or more.")
    if args.loss_type == "kto" and args.precompute_ref_log_probs:
        raise ValueError(
            "train.precompute_ref_log_probs: kto also asks the reference about answers that are paired anew at every step. "
            "Leave it out, or set train.loss_type: apo_zero_unpaired."
        )


def build(job, args, inputs):
    from lib import models
    from lib.kto import WholeStepKTOTrainer

    inputs.check.need_both_labels()  # known by now also of rows that the plan didn't read
    shared = models.for_trainer(job.model, args)
    return WholeStepKTOTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(name="kto", config="lib.kto:StepKTOConfig", rows=("labelled",), check=check, build=build)

if __name__ == "__main__":
    main(STAGE)
