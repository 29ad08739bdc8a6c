"""KTO: learns from single answers labelled wanted or unwanted, without pairs, and stays near a reference by β.

    L(θ) = E[λ_D (1 − σ(β (r − z₀)))] over wanted answers, E[λ_U (1 − σ(β (z₀ − r)))] over unwanted ones
    r = log π_θ(y|x)/π_ref(y|x),  z₀ estimates KL(π_θ‖π_ref)
    Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4.  β: `train.beta`; λ: `train.(un)desirable_weight`.

A preference pair counts as one wanted and one unwanted answer. lib/methods/preference/kto.py explains how z₀ is estimated.

    python jobs/kto.py --config configs/kto.yaml --model.base runs/quickstart/sft
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    if args.loss_type == "kto" and job.scale.global_batch < 2:
        raise ValueError("scale.global_batch: KTO compares the answers within a step. Use 2 or more.")
    if args.loss_type == "kto" and args.precompute_ref_log_probs:
        raise ValueError(
            "train.precompute_ref_log_probs: kto also needs reference log-probabilities of answers that are re-paired at "
            "every step. Leave it out, or set train.loss_type: apo_zero_unpaired."
        )


def build(job, args, inputs):
    from lib.methods.preference.kto import WholeStepKTOTrainer
    from lib.models import load

    inputs.check.need_both_labels()  # the plan may not have read every row; by now all have been
    shared = load.for_trainer(job.model, args)
    return WholeStepKTOTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(
    name="kto", config="lib.methods.preference.kto:StepKTOConfig", rows=("labelled",), check=check, build=build
)

if __name__ == "__main__":
    main(STAGE)
