"""Proximal policy optimisation: answers are rewarded, and a value model says how much better each token was than expected.

    r_t = − β KL_t + [last token] reward,    A_t = Σ_k (γλ)^k δ_{t+k},    δ_t = r_t + γ V_{t+1} − V_t
    L(θ) = Σ_t max(− ρ_t A_t, − clip(ρ_t, 1 − ε, 1 + ε) A_t) + c Σ_t ½ (V_t − R_t)²,      ρ_t = π_θ(y_t) / π_old(y_t)
    Schulman et al. 2017, https://arxiv.org/abs/1707.06347; Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Huang et al. 2024,
    https://arxiv.org/abs/2403.17031.  β is `train.kl_coef`, ε `train.cliprange`, λ `train.lam`, γ `train.gamma`, c `train.vf_coef`.

Rewards are the section `rewards` (lib/methods/rl/rewards.py). A rollout has scale.global_batch answers, each to its own prompt, and
train.num_iterations updates learn from all of them.

    python jobs/ppo.py --config configs/ppo.yaml --model.base runs/quickstart/sft
    python jobs/ppo.py --config configs/ppo.yaml --train.value runs/quickstart/reward
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    from lib.methods.rl.ppo_check import check

    check(job, args)


def fits(job, args, checked):
    from lib.methods.rl.rewards import fits

    fits(job, args, checked)


def build(job, args, inputs):
    from lib.methods.rl.ppo import trainer

    return trainer(job, args, inputs)


STAGE = Stage(
    name="ppo", config="lib.methods.rl.ppo_config:PPOConfig", rows=("problem", "prompt"), check=check, fits=fits, build=build,
    rewarded=True, may_name={"value": "reward"},
)  # fmt: skip

if __name__ == "__main__":
    main(STAGE)
