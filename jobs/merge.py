"""Merges runs of one base into one model, weight by weight, without training.

δᵢ = θᵢ − θ₀;  θ = θ₀ + Σ wᵢ δᵢ for `linear`. The other methods first leave out a part of each δᵢ (lib/methods/model_merging/combine.py).
The runs may have been trained in full or with any adapter that is merged at the end. The result is a run like any other: it can be
evaluated, served and trained further.

    python jobs/merge.py --config configs/merge.yaml
    python jobs/merge.py --runs.sft runs/quickstart/sft --runs.cot runs/cot --method ties --run runs/both
"""

from lib.methods.model_merging import job
from lib.stage.driver import main
from lib.stage.stage import WorkStage


def work(planned, command):
    from lib.methods.model_merging.work import merged

    return merged(planned, command)


STAGE = WorkStage(name="merge", makes="causal_lm", parse=job.parse, plan=job.plan, work=work, resumes=False)

if __name__ == "__main__":
    main(STAGE)
