"""Quantise a run after training: fewer bits for its weights, and a report of what that saves and what it costs.

w ≈ s · q with q a small integer (or, for nf4, one of 16 quantiles of a normal distribution) and a scale s per output or block.
Methods and papers: lib/quantize/methods.py. The model becomes a run of its own: evaluation, serving and distillation (as
its teacher) take it as any other. It can't be trained on; train its parent and quantise again.

    python jobs/quantize.py --config configs/quantize.yaml
    python jobs/quantize.py --model.base runs/quickstart/sft --method nf4 --tasks demo perplexity --run runs/nf4
"""

import os
import shlex
import sys
import time


def main(argv: list[str] | None = None) -> int:
    """0: the run and its report are there; 1: the work failed; 2: a mistake in the request."""
    from lib import provenance, termination
    from lib.cli import refusing
    from lib.launch import RAY_ENV, show
    from lib.quantize import job

    for key, value in RAY_ENV.items():  # read by ray when it is imported
        os.environ.setdefault(key, value)
    termination.as_interrupt()
    with refusing("jobs/quantize.py"):
        request, dry_run, resume = job.parse(argv)
        planned = job.plan(request, resume, dry_run)
    show(planned.lines(), "quantize: the plan")
    if dry_run:
        print("Dry run: nothing was started.")
        return 0
    from lib import logs
    from lib.run import Run

    run = Run(planned.job.run)
    if planned.done and run.fs.exists(run.at("reports/quantize.json")):
        print(f"{run.path} is already finished: nothing to resume.")
        return 0
    words = sys.argv[1:] if argv is None else argv
    try:
        with logs.driver(run):
            _work(planned, run, shlex.join(["python", "jobs/quantize.py", *words]))
    except KeyboardInterrupt:
        if run.is_run() and not run.finished():
            provenance.ended(run, "interrupted")
        again = f"python jobs/quantize.py --resume {shlex.quote(run.path)}"
        print(f"\n{termination.word()}. Go on with: {again}", file=sys.stderr)
        return termination.code()
    except Exception as e:
        return _failed(run, e)
    return 0


def _work(planned, run, command: str) -> None:
    """Model, then measurements, then scores; what is there already is not made again."""
    import ray

    from lib import data, launch
    from lib.apart import apart
    from lib.compression import measure, report
    from lib.evals.evaluate import evaluate
    from lib.quantize import work

    started, j = time.time(), planned.job
    say = lambda text: print(f"{time.time() - started:5.0f} s  {text}", flush=True)  # noqa: E731
    launch.connect()
    try:
        if not planned.done:
            work.produce(planned)
            say(f"the model is in {run.at('model')}")
        prompts, needs = data.prompts(data.load(j.data, ("chat", "text"), training=False).heldout, measure.TOGETHER), {}
        for name, base in (("before", j.model.base), (j.method, run.path)):
            needs[name] = apart(run, measure.needs, base, j.chosen() == "vllm", j.dtype, prompts, j.max_new_tokens)
            say(f"{name:<10} memory and speed measured")
        scores = evaluate(j.evaluation(), command) if j.tasks else None
    finally:
        ray.shutdown()
    p = run.provenance()
    found = report.Compressed(
        run.path, "quantize", j.model.base, ("before", j.method), f"Quantised in {p['seconds']['quantize']:.0f} s.", j.chosen(),
        p, p["bytes"], needs, scores, command,
    )  # fmt: skip
    report.write(found)
    report.terminal(found)


def _failed(run, e: Exception) -> int:
    """Says what went wrong; the run is left failed, or, where the model itself is there, finished without its report."""
    from lib import provenance
    from lib.failure import explain

    why = explain(e)
    made = run.finished()
    print(f"\n{'The model is there, but: ' if made else ''}{why}", file=sys.stderr)
    print(f"What the libraries printed: {run.at('logs')}", file=sys.stderr)
    print(f"Go on with: python jobs/quantize.py --resume {shlex.quote(run.path)}", file=sys.stderr)
    if run.is_run() and not made:
        provenance.record(run, {"status": "failed", "failure": why})
    if os.environ.get("SHOESTRING_TRACEBACK"):
        raise e
    return 1


if __name__ == "__main__":
    sys.exit(main())
