"""Reward model: a scalar head that gives the chosen answer of a pair more than the rejected one.

L(φ) = − log σ(r_φ(x, y⁺) − r_φ(x, y⁻))        Bradley-Terry; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1

python jobs/reward.py --config configs/reward.yaml
"""

from lib.launch import main


def build(job, args):
    """model/ of the run loads with AutoModelForSequenceClassification, num_labels=1."""
    from trl import RewardTrainer

    from lib import data, models

    rows = data.load(job.data, ("comparison",))
    shared = models.for_trainer(job.model, args, task_type="SEQ_CLS")
    return RewardTrainer(args=args, train_dataset=rows.train, eval_dataset=rows.heldout, **shared)


if __name__ == "__main__":
    main(build, "trl.trainer.reward_config:RewardConfig", rows=("comparison",))
