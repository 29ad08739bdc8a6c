"""Reward model: a scalar head that scores the chosen answer of a pair above the rejected one.

L(φ) = − log σ(r_φ(x, y⁺) − r_φ(x, y⁻))        Bradley-Terry; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1

python jobs/reward.py --config configs/reward.yaml
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    """The run's model/ loads with AutoModelForSequenceClassification and num_labels=1."""
    from trl import RewardTrainer

    from lib.models import load

    shared = load.for_trainer(job.model, args, STAGE.makes)
    return RewardTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(
    name="reward",
    config="trl.trainer.reward_config:RewardConfig",
    rows=("comparison",),
    makes="reward",
    starts_from=("causal_lm", "reward"),
    build=build,
)

if __name__ == "__main__":
    main(STAGE)
