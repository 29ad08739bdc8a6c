"""ORPO: supervised fine-tuning on chosen answers that also lowers the odds of rejected ones, in one stage without a reference.

L(θ) = − mean log π_θ(y⁺_t) − λ log σ(log odds_θ(y⁺|x) − log odds_θ(y⁻|x))
odds = p/(1 − p), where log p is the mean log-probability of the answer's tokens
Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 6 and 7.  λ is `train.beta`.

python jobs/orpo.py --config configs/orpo.yaml
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.preference.orpo import ORPOTrainer
    from lib.models import load

    shared = load.for_trainer(job.model, args)
    return ORPOTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(name="orpo", config="lib.methods.preference.orpo:ORPOConfig", rows=("preference",), build=build)

if __name__ == "__main__":
    main(STAGE)
