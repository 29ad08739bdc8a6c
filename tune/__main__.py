"""Searches over the settings of a training stage with Ray Tune.

    python -m tune --config configs/tune/sft.yaml
    python -m tune --config configs/tune/sft.yaml --budget.hours 1

The same command goes on with a search that was interrupted or killed. `python -m tune --help` lists the keys.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lib.config.command_line import Request
from lib.stage.driver import main
from lib.stage.stage import WorkStage
from tune import settings

if TYPE_CHECKING:
    from tune.plan import Plan


def plan(request: Request) -> Plan:
    from tune import plan

    planned = plan.make(request.job)
    plan.preflight(planned)
    return planned


def work(planned: Plan, command: str) -> bool:
    from tune import report, tuner

    return report.write(planned, *tuner.run(planned), command)


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
