"""Reports what pruning saved and cost: compares the run with its base, in reports/prune.md and prune.json."""

from __future__ import annotations

import shlex
import sys

from lib.config.job import Job
from lib.run import Run


def compare(run: Run, job: Job) -> bool:
    """Measures the base and the run, unless that was done before, and prints the table. Returns True: no result counts as a failure."""
    from lib import data
    from lib.generation import vllm_generator
    from lib.methods.compression import measure, report
    from lib.models import locate
    from lib.runtime import ray_session
    from lib.runtime.isolated_task import apart

    if run.fs.exists(run.at("reports/prune.json")):
        print(run.read_text("reports/prune.md"), flush=True)
        return True
    print("Measuring memory and speed of the base and of the pruned model …", flush=True)
    vllm = vllm_generator.installed()
    prompts = data.prompts(data.load(job.data, ("chat", "text"), training=False).heldout, measure.TOGETHER)
    both = {"base": job.model.base, "prune": run.path}
    with ray_session.connected():
        needs = {
            n: apart(run, measure.needs, b, vllm, "auto", prompts, job.eval.max_new_tokens or 64)
            for n, b in both.items()
        }
    done = run.read_json("pruned.json", "Delete it and reports/, and --resume the run: it is computed again.")
    sizes = {n: measure.weights(locate.snapshot(b)) for n, b in both.items()}
    found = report.Compressed(
        run.path, "prune", job.model.base, ("base", "prune"), _how(run, done), "vllm" if vllm else "transformers",
        run.provenance(), sizes, needs, _scores(run, job), shlex.join(["python", *sys.argv]), _counts(done),
    )  # fmt: skip
    report.write(found)
    report.terminal(found)
    return True


def _scores(run: Run, job: Job):
    """Returns the report on eval.tasks, None if there are none. It is made after training; if that was interrupted, it is made now."""
    from lib.evals.evaluate import evaluate
    from lib.evals.job import after
    from lib.evals.plan import plan
    from lib.evals.report.schema import Report

    if not job.eval.tasks:
        return None
    if not run.fs.exists(run.at("reports/report.json")):
        return evaluate(plan(after(job)))
    return Report.from_json(run.read_text("reports/report.json"))


def _how(run: Run, done: dict) -> str:
    p, losses = run.provenance(), [r["eval_loss"] for r in run.metrics() if "eval_loss" in r]
    healed = f", held-out loss {losses[0]:.4f} → {losses[-1]:.4f}" if len(losses) > 1 else ""
    return (
        f"Pruned by {done['method']} in {done['seconds']:.0f} s, healed in {p['steps']} steps of {p['seconds']['train']:.0f} s "
        f"together{healed}."
    )


def _counts(done: dict) -> tuple[tuple[str, str, str, str], ...]:
    before, after = done["parameters"]["before"], done["parameters"]["after"]
    out = [("weights", f"{before / 1e6:.0f}M", f"{after / 1e6:.0f}M", f"{after / before:.2f}×")]
    if done["zeros"] > 0.01:
        out.append(("zeros in the linear layers' weights", "", f"{done['zeros']:.0%}", ""))
    return tuple(out)
