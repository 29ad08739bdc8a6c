"""Evaluate runs on held-out data: task scores, perplexity, preference accuracy, win rate, KL; then write the report.

Every number comes with its n and 95% interval, and runs are compared on the same examples (lib/evals/statistics.py).
Models work as Ray actors, one per GPU or CPU core (lib/evals/engine.py). What can be measured: lib/evals/tasks.py.

    python jobs/eval.py --config configs/eval.yaml
    python jobs/eval.py --runs.base HuggingFaceTB/SmolLM2-135M-Instruct --runs.sft runs/quickstart/sft --tasks demo perplexity
"""

import os
import shlex
import sys
import time
from dataclasses import asdict


def main(argv: list[str] | None = None) -> int:
    """0: the report is written; 1: the work failed, or the gate is shut; 2: a mistake in the request."""
    from lib import termination
    from lib.cli import refusing
    from lib.evals import cli, job

    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")  # as lib/launch.py
    termination.as_interrupt()
    with refusing("jobs/eval.py"):
        request, dry_run = cli.parse(argv)
        planned = job.plan(request)
    from lib.launch import show

    show(planned.lines(), "eval: the plan")
    if dry_run:
        print("Dry run: nothing was started.")
        return 0
    command = shlex.join(["python", "jobs/eval.py", *(sys.argv[1:] if argv is None else argv)])
    return _evaluate(planned.job, command, {s.name: s.identity for s in planned.specs})


def _evaluate(request, command: str, identities: dict[str, str]) -> int:
    import yaml

    from lib import logs, termination
    from lib.evals.evaluate import evaluate
    from lib.evals.render import terminal
    from lib.run import Run

    run, began = Run(request.run), time.time()
    own = not run.is_run() or run.job().get("stage") == "eval"  # else the report joins a training run's directory
    if own:
        run.write_text(
            "job.yaml", yaml.safe_dump({**asdict(request), "stage": "eval"}, sort_keys=False, allow_unicode=True)
        )
        known = {"stage": "eval", "command": command, "identities": identities}
        run.write_json("provenance.json", known | {"status": "running"})
    try:
        with logs.driver(run):
            report = evaluate(request, command)
    except (ValueError, RuntimeError) as e:
        if own:
            run.write_json("provenance.json", known | {"status": "failed", "failure": str(e)})
        print(f"\nEvaluation failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if own:
            run.write_json("provenance.json", known | {"status": "interrupted"})
        print(f"\n{termination.word()}. Type it again: {command}", file=sys.stderr)
        return termination.code()
    if own:
        done = {"status": "finished", "git": report.environment["git"]}
        run.write_json("provenance.json", known | done | {"seconds": {"total": time.time() - began}})
    terminal(report, run.at("reports"))
    failed = [v for v in report.verdicts if v.claim.startswith("gate: ") and not v.holds]
    for v in failed:
        print(f"{v.claim}: no, {v.evidence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
