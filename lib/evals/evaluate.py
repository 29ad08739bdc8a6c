"""Evaluates runs on tasks and writes the report, for jobs/eval.py and for training stages that evaluate their result."""

from __future__ import annotations

import platform
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from lib.evals import registry
from lib.evals.context import Context
from lib.evals.job import EvalJob
from lib.evals.judging import llm_judge
from lib.evals.judging.llm_judge import Panel
from lib.evals.judging.openai_client import Endpoint
from lib.evals.measures import contamination, sampled_answers
from lib.evals.plan import Plan
from lib.evals.report import gate, length, summary, time_estimate
from lib.evals.report.formatting import duration
from lib.evals.report.schema import Curve, Report, RunInfo, Timing, flatten
from lib.evals.task import Scores
from lib.evals.tasks import harness_tasks
from lib.generation import vllm_generator
from lib.generation.pool import TASK, Engine
from lib.generation.result_cache import Ledger
from lib.run import Run
from lib.runtime import ray_session

PACKAGES = ("torch", "transformers", "ray", "trl", "peft", "datasets", "scipy", "numpy")


def evaluate(planned: Plan, command: str | None = None, say=print) -> Report:
    """Measures everything in the plan (lib/evals/plan.py) and writes <run>/reports/.

    Uses the Ray connection if there is one, otherwise connects for the duration. The report shows `command` as the way to
    reproduce it. Raises RuntimeError or ValueError if the evaluation fails.
    """
    panel = panel_of(planned.job)
    with ray_session.connected():
        return _evaluate(planned, panel, command, say)


def measure(planned: Plan, engine: Engine, panel: Panel | None) -> tuple[Context, list[Scores]]:
    """Measures the job's tasks with the models of `engine`. Returns (what else was recorded, the scores of each example).

    Raises RuntimeError or ValueError if a task fails; the engine is then closed.
    """
    job = planned.job
    rule = registry.RULES["demo"] if job.data.source == "demo" else None
    context = Context(job, engine, planned.scorer, rule, panel)
    with ThreadPoolExecutor(len(job.tasks)) as pool:
        futures = [pool.submit(_measure, name, context) for name in job.tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            _close(engine, panel)  # otherwise the pool would wait for the answers
            raise
        failed = next((f.exception() for f in futures if f in done and f.exception()), None)
        if failed:
            _close(engine, panel)
            raise failed
    return context, [s for f in futures for s in f.result()]


def _evaluate(planned: Plan, panel: Panel | None, command: str | None, say) -> Report:
    from lib.evals.report.render import write

    job, began = planned.job, time.time()
    with Engine(planned.specs, job.workers, say, Ledger(Run(job.run)), job.device) as engine:
        context, scores = measure(planned, engine, panel)
        work = engine.timings()
        sizes = {s.name: time_estimate.parameters(s.base) for s in planned.specs}
        time_estimate.remember("gpu" if engine.gpu else "cpu", work, sizes)
    scores += panel.honesty() if panel else []
    if not any(s.headline and s.run in job.runs and not s.versus for s in scores):
        for s in scores:  # if no task has right answers, the runs are compared by perplexity
            s.headline = s.headline or s.metric == "perplexity"
    metrics = [summary.metric(s, job.seed) for s in scores]
    compared = summary.comparisons(scores, job.seed)
    runs = [_run_info(s.name, s.base, s.trained_template) for s in planned.specs]
    note, samples = sampled_answers.samples(context)
    report = Report(
        title=" → ".join(job.runs) or (f"reward model {planned.scorer}" if planned.scorer else ", ".join(job.tasks)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=job.seed,
        runs=runs,
        metrics=metrics,
        comparisons=compared,
        verdicts=summary.verdicts(list(job.runs), metrics, compared, job.accuracy_floor, job.kl_ceiling),
        samples=samples,
        samples_note=note,
        timings=_training_times(runs) + _evaluation_times(work, panel, time.time() - began),
        commands=[r.command for r in runs if r.command] + ([command] if command else []),
        next=_next_commands(planned),
        settings=flatten(asdict(job)),
        environment=_environment(planned),
        warnings=warnings(runs, metrics, job),
    )
    report.failures = sampled_answers.failures(context, scores)
    report.calibrations = context.calibrations
    report.overlaps = contamination.overlaps(
        {s.name: s.base for s in planned.specs if not s.reward}, {t: _examples(context, t) for t in context.recorded}
    )
    if panel:
        report.environment["judge"] = {"model": job.judge.model, "url": job.judge.url} | panel.endpoint.spent()
        report.warnings += panel.endpoint.warnings()
    report.warnings += _contaminated(report)
    report.verdicts += gate.judge(job.gate, report)
    say("writing the report …")
    write(report, Run(job.run), sampled_answers.lines(context))
    return report


def _measure(name: str, context: Context) -> list[Scores]:
    # Per thread: the engine attributes the requests of this thread to the task.
    TASK.set(harness_tasks.called(name) if name.startswith(harness_tasks.PREFIX) else name)
    return registry.get(name, context.job.task_data, context.job.lm_eval)(context)


def panel_of(job: EvalJob) -> Panel | None:
    """Returns the judge after checking that it responds. Raises Unreachable (a RuntimeError) before anything else starts."""
    if not job.judge.url:
        return None
    panel = Panel(job.judge, Endpoint(job.judge, Run(job.run)), llm_judge.prompts(job.judge.prompts))
    panel.endpoint.check()
    return panel


def _close(engine: Engine, panel: Panel | None) -> None:
    engine.close()
    if panel:
        panel.endpoint.close()


def _run_info(name: str, base: str, trained_template: str | None) -> RunInfo:
    run = Run(base) if "/" in base else None
    if run is None or not run.is_run():
        return RunInfo(name, base, "base")
    provenance, job = run.provenance(), run.job()
    settings = {k: v for k, v in flatten(job).items() if not k.startswith("train") and k != "makes"}
    settings |= flatten({"train": provenance.get("train") or job.get("train", {})})
    shown = {k: v for k, v in provenance.items() if k != "train"}
    return RunInfo(
        name, run.path, job["stage"], provenance.get("parent"), _curves(run.metrics()), shown, settings,
        provenance.get("command"), trained_template, job.get("makes", "causal_lm"),
    )  # fmt: skip


def _curves(rows: list[dict]) -> list[Curve]:
    """Returns training and held-out loss, and the accuracy that reward and DPO trainers log."""
    found = []
    named = {
        "loss": "training loss", "eval_loss": "held-out loss",
        "accuracy": "training accuracy", "eval_accuracy": "held-out accuracy",
        "rewards/accuracies": "training accuracy", "eval_rewards/accuracies": "held-out accuracy",
    }  # fmt: skip
    for key, name in named.items():
        points = [(int(r["step"]), float(r[key])) for r in rows if key in r and "step" in r]
        if points:
            found.append(Curve(name, *(list(c) for c in zip(*points, strict=True))))
    return found


def _training_times(runs: list[RunInfo]) -> list[Timing]:
    found = []
    for r in runs:
        p, seconds = r.provenance, r.provenance.get("seconds") or {}
        if not seconds:
            continue
        train = seconds.get("train") or 0.0
        rate = (
            p.get("tokens_per_second")
            if "tokens_per_second" in p
            else p["tokens"] / train
            if p.get("tokens") and train
            else None
        )
        detail = ", ".join(f"{k} {duration(v)}" for k, v in seconds.items() if k != "total")
        total = seconds.get("total") or sum(seconds.values())
        found.append(Timing(r.name, total, p.get("steps"), p.get("tokens"), rate, p.get("peak_memory_bytes"), detail))
    return found


def _evaluation_times(work: list[dict], panel: Panel | None, wall: float) -> list[Timing]:
    """Returns one row per model, task and kind of request (seconds summed over processes), and the total wall time."""
    kinds: dict[tuple, list[dict]] = {}
    for w in work:
        kinds.setdefault((w["model"], ", ".join(w["tasks"]), w["what"]), []).append(w)
    rows = []
    for (model, named, what), parts in kinds.items():
        total, seconds, tokens = (sum(w[k] for w in parts) for k in ("total", "seconds", "tokens"))
        rate = tokens / seconds if tokens and seconds else None
        name = f"evaluate: {model}{f' on {named}' if named else ''}, {total} {what}"
        rows.append(Timing(name, seconds, None, tokens or None, rate))
    if panel and panel.endpoint.asked:
        s = panel.endpoint.spent()
        detail = f"{s['cached']} from before, {s['refused']} refused, {s['failed']} without an answer, {s['tokens_in']:,} tokens read, ${s['usd']:.2f}"
        rows.append(
            Timing(
                f"judge: {panel.name}, {s['replies']} verdicts",
                s["seconds"],
                None,
                s["tokens_out"] or None,
                detail=detail,
            )
        )
    return [*rows, Timing("evaluate: all, start to end", wall)]


def _environment(planned: Plan) -> dict:
    from lib.runtime.provenance import git_state

    shown = ("source", "format", "kind", "rows", "heldout_rows", "sha256")
    data = {name: {k: getattr(check, k) for k in shown} for name, check in planned.checks.items()}
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in PACKAGES},
        "hardware": _hardware(),
        "data": data,
        "task_versions": {
            name: str(registry.task(name).version) for name in planned.job.tasks if name in registry.TASKS
        },
        "engine": f"vllm {vllm_generator.version()}"
        if planned.job.vllm()
        else f"transformers {version('transformers')}",
    }


def _hardware() -> str:
    import ray

    have = ray.cluster_resources()
    kinds = [k.removeprefix("accelerator_type:") for k in have if k.startswith("accelerator_type:")]
    gpus = f"{have['GPU']:g} GPU ({', '.join(kinds)}), " if have.get("GPU") else ""
    return (
        f"{gpus}{have.get('CPU', 0):g} CPU cores, {have.get('memory', 0) / 2**30:.0f} GiB for Ray, {platform.machine()}"
    )


def warnings(runs: list[RunInfo], metrics: list, job: EvalJob) -> list[str]:
    """Returns a sentence for each reason to read these scores with care."""
    out = []
    templates = {r.template_sha256 for r in runs if r.template_sha256}
    if len(templates) > 1 and any(m.task not in registry.KINDS for m in metrics):  # those read texts without a template
        out.append("The runs were trained with different chat templates: their answers differ for that reason too.")
    short = sorted({f"{m.task} ({m.n})" for m in metrics if job.limit and m.n < job.limit and m.headline})
    out += length.warnings(metrics)
    if short:
        out.append(f"Fewer examples than limit ({job.limit}) were there for {', '.join(short)}.")
    return out


def _examples(context: Context, task: str) -> list:
    return list({r["example"].id: r["example"] for r in context.recorded[task].values()}.values())


def _contaminated(report: Report) -> list[str]:
    return [
        f"{o.found} of {o.n} examples of {o.task} share {contamination.WORDS} words in a row (or all they have) with the "
        f"training data of {o.run}, such as {', '.join(o.first[:3])}."
        for o in report.overlaps
        if o.found
    ]


def _next_commands(planned: Plan) -> list[str]:
    job = planned.job
    out = [f"xdg-open {Run(job.run).at('reports')}/report.html"]
    if job.limit:
        out.append("python jobs/eval.py --config configs/eval.yaml --limit null --run runs/eval-all")
    last = next((s for s in reversed(planned.specs) if not s.reward and "/" in s.base and Run(s.base).is_run()), None)
    stage = Run(last.base).job()["stage"] if last else None
    if stage == "dpo":
        out.append("python jobs/dpo.py --config configs/dpo.yaml --train.beta 0.05 --run runs/dpo-beta-0.05")
    elif stage == "sft":
        out.append(f"python jobs/dpo.py --config configs/dpo.yaml --model.base {last.base}")
    else:
        out.append("python jobs/pipeline.py --config configs/pipeline/quickstart.yaml")
    return out
