"""Group relative policy optimisation: several answers to each prompt; those better than their group's mean become likelier.

    A_i = (r_i − mean r) / std r  over the answers i to one prompt
    L(θ) = − Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε, 1 + ε) A_i) + β KL(π_θ ‖ π_ref),      ρ_it = π_θ(y_it) / π_old(y_it)
    Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 3 and section 4.1.2.  β is `train.beta` (0: no reference model), ε
    `train.epsilon`; train.loss_type chooses how tokens are averaged: dapo (default), dr_grpo, grpo, cispo …

Rewards are the section `rewards` (lib/methods/rl/rewards.py). scale.global_batch counts answers.

    python jobs/grpo.py --config configs/grpo.yaml --model.base runs/quickstart/sft
    python jobs/grpo.py --config configs/grpo.yaml --rewards.demo 1 --rewards.length -0.1
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    from lib.methods.rl.grpo_check import check

    check(job, args)


def fits(job, args, checked):
    from lib.methods.rl.rewards import fits

    fits(job, args, checked)


def build(job, args, inputs):
    from lib.methods.rl.grpo import trainer

    return trainer(job, args, inputs)


STAGE = Stage(
    name="grpo", config="lib.methods.rl.grpo_config:StepGRPOConfig", rows=("problem", "prompt"), check=check, fits=fits, build=build,
    rewarded=True,
)  # fmt: skip

if __name__ == "__main__":
    main(STAGE)
