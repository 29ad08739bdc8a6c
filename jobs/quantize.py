"""Quantises a trained run: stores its weights in fewer bits and reports what that saves and costs.

w ≈ s · q, where q is a small integer (for nf4, one of 16 quantiles of a normal distribution) and s a scale per output or block.
Methods and papers: lib/models/quantization/schemes.py. The result is a run of its own that can be evaluated, served and used as a
distillation teacher. It can't be trained further; train its parent and quantise again.

    python jobs/quantize.py --config configs/quantize.yaml
    python jobs/quantize.py --model.base runs/quickstart/sft --method nf4 --tasks demo perplexity --run runs/nf4
"""

from lib.methods.quantization import job
from lib.stage.driver import main
from lib.stage.stage import WorkStage


def work(planned, command):
    from lib.methods.quantization.work import quantised

    return quantised(planned, command)


STAGE = WorkStage(name="quantize", makes="causal_lm", parse=job.parse, plan=job.plan, work=work)

if __name__ == "__main__":
    main(STAGE)
