"""Quantise a run after training: fewer bits for its weights, and a report of what that saves and what it costs.

w ≈ s · q with q a small integer (or, for nf4, one of 16 quantiles of a normal distribution) and a scale s per output or block.
Methods and papers: lib/quantize/methods.py. The model becomes a run of its own: evaluation, serving and distillation (as
its teacher) take it as any other. It can't be trained on; train its parent and quantise again.

    python jobs/quantize.py --config configs/quantize.yaml
    python jobs/quantize.py --model.base runs/quickstart/sft --method nf4 --tasks demo perplexity --run runs/nf4
"""

from lib.quantize import job
from lib.stage.driver import main
from lib.stage.stage import WorkStage


def work(planned, command):
    from lib.quantize.work import quantised

    return quantised(planned, command)


STAGE = WorkStage(name="quantize", makes="causal_lm", parse=job.parse, plan=job.plan, work=work)

if __name__ == "__main__":
    main(STAGE)
