"""Direct preference optimisation: raise the chosen answer over the rejected one, held to a reference by β.

    L(θ) = − log σ(β [log π_θ(y⁺|x)/π_ref(y⁺|x) − log π_θ(y⁻|x)/π_ref(y⁻|x)])
    Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7.  β is `train.beta`; other losses by `train.loss_type`.

The reference is the base that the job starts from: with an adapter the base with the adapter off, else a frozen copy.

    python jobs/dpo.py --config configs/dpo.yaml --train.beta 0.05
"""

from lib.launch import main


def build(job, args):
    from lib import data, models
    from lib.dpo import WholeStepDPOTrainer

    rows = data.load(job.data, ("preference",))
    return WholeStepDPOTrainer(
        args=args, train_dataset=rows.train, eval_dataset=rows.heldout, **models.for_trainer(job.model, args)
    )


if __name__ == "__main__":
    main(build, "trl.trainer.dpo_config:DPOConfig", rows=("preference",))
