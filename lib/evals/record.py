"""Runs an evaluation as a run of its own, or writes its report into the directory of a trained run."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

from lib.evals.evaluate import evaluate
from lib.evals.plan import Plan
from lib.evals.report.render import terminal
from lib.run import Run


def evaluated(planned: Plan, command: str) -> bool:
    """Evaluates, writes the run's provenance.json and prints the report. Returns whether every rule of the gate holds."""
    import yaml

    job, began = planned.job, time.time()
    run = Run(job.run)
    own = (
        not run.is_run() or run.job().get("stage") == "eval"
    )  # otherwise the report goes into a trained run's directory
    known = {"stage": "eval", "command": command, "identities": {s.name: s.identity for s in planned.specs}}
    if own:
        kept = {**asdict(job), "stage": "eval", "makes": "report"}
        run.write_text("job.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
        run.write_json("provenance.json", known | {"status": "running"})
    report = evaluate(planned, command)
    if own:
        done = {"status": "finished", "git": report.environment["git"]}
        run.write_json("provenance.json", known | done | {"seconds": {"total": time.time() - began}})
    terminal(report, run.at("reports"))
    failed = [v for v in report.verdicts if v.claim.startswith("gate: ") and not v.holds]
    for v in failed:
        print(f"{v.claim}: no, {v.evidence}", file=sys.stderr)
    return not failed
