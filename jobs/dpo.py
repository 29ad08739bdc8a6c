"""Direct preference optimisation: raise the chosen answer over the rejected one, held to a reference by β.

    L(θ) = − log σ(β [log π_θ(y⁺|x)/π_ref(y⁺|x) − log π_θ(y⁻|x)/π_ref(y⁻|x)])
    Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7.  β is `train.beta`; other losses by `train.loss_type`.

The reference is the base that the job starts from: with an adapter, the base with the adapter disabled; otherwise a frozen copy.

    python jobs/dpo.py --config configs/dpo.yaml --train.beta 0.05
"""

from lib.stage.driver import main
from lib.stage.stage import Stage


def build(job, args, inputs):
    from lib.methods.preference.dpo import WholeStepDPOTrainer
    from lib.models import load

    shared = load.for_trainer(job.model, args)
    return WholeStepDPOTrainer(args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, **shared)


STAGE = Stage(name="dpo", config="trl.trainer.dpo_config:DPOConfig", rows=("preference",), build=build)

if __name__ == "__main__":
    main(STAGE)
