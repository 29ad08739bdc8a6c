"""SimPO: raises the chosen answer's log-probability per token above the rejected one's by a margin, without a reference.

    L(θ) = − log σ(β [mean log π_θ(y⁺_t) − mean log π_θ(y⁻_t)] − γ)
    Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6.  β is `train.beta`, γ `train.simpo_gamma`.

`train.loss_type: cpo` uses sums instead of means and no margin, and adds the chosen answers' NLL, weighted by
`train.cpo_alpha` (Xu et al. 2024, https://arxiv.org/abs/2401.08417, eq. 5).

    python jobs/simpo.py --config configs/simpo.yaml --model.base runs/quickstart/sft
    python jobs/simpo.py --config configs/simpo.yaml --model.base runs/quickstart/sft --train.loss_type cpo
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.preference.simpo import SimPOTrainer
    from lib.models import load

    shared = load.for_trainer(job.model, args)
    return SimPOTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(name="simpo", config="lib.methods.preference.simpo:SimPOConfig", rows=("preference",), build=build)

if __name__ == "__main__":
    main(STAGE)
