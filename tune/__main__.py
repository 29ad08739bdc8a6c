"""Searches over the settings of a training stage with Ray Tune.

    python -m tune --config configs/tune/sft.yaml
    python -m tune --config configs/tune/sft.yaml --budget.hours 1

The same command goes on with a search that was interrupted or killed. `python -m tune --help` lists the keys.
"""

import os

from lib.stage.driver import main
from lib.stage.stage import WorkStage
from tune import settings


def plan(request):
    from tune import plan

    return plan.make(request.job)


def work(planned, command):
    from tune import report, search

    return report.write(planned, *search.run(planned), command)


STAGE = WorkStage(
    name="tune",
    program="python -m tune",
    makes="report",
    parse=settings.parse,
    plan=plan,
    work=work,
    environment=lambda planned: planned.environment(),
    resumes=False,
)

if __name__ == "__main__":
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # after Ctrl-C, the thread of Ray Tune would start another Ray
    main(STAGE)
