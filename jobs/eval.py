"""Evaluates runs on held-out data (task scores, perplexity, preference accuracy, win rate, KL) and writes a report.

Every number has its n and 95% interval, and runs are compared on the same examples (lib/evals/statistics/intervals.py).
Models run as Ray actors, one per GPU or CPU core (lib/generation/pool.py). The tasks are listed in lib/evals/registry.py.

    python jobs/eval.py --config configs/eval.yaml
    python jobs/eval.py --runs.base HuggingFaceTB/SmolLM2-135M-Instruct --runs.sft runs/quickstart/sft --tasks demo perplexity
"""

from lib.evals import cli
from lib.stage.driver import main
from lib.stage.stage import WorkStage


def plan(request):
    from lib.evals.plan import plan

    return plan(request.job)


def work(planned, command):
    from lib.evals.record import evaluated

    return evaluated(planned, command)


STAGE = WorkStage(name="eval", makes="report", parse=cli.parse, plan=plan, work=work, resumes=False)

if __name__ == "__main__":
    main(STAGE)
