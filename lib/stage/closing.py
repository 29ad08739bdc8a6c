"""The closing output of a training run: a summary, its evaluation, and the next commands."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace

from lib.config.job import Job
from lib.data.sources import DEMOS
from lib.evals.registry import KINDS
from lib.models.from_scratch import new_heads
from lib.run import Run
from lib.runtime.console import show


def finish(run: Run, job: Job) -> bool:
    """Prints a summary of the run, evaluates it on eval.tasks, and prints the next commands. Returns False if the evaluation failed."""
    p = run.provenance()
    losses = [r for r in run.metrics() if "loss" in r]
    held = [r for r in run.metrics() if "eval_loss" in r]
    rows = [
        ("steps", str(p["steps"])),
        (
            "loss",
            f"{losses[0]['loss']:.4f} → {losses[-1]['loss']:.4f}" if losses else "not logged (train.logging_steps)",
        ),
        *([("held-out loss", f"{held[-1]['eval_loss']:.4f}")] if held else []),
        *[
            (
                f"held-out {name}",
                " → ".join(f"{r[f'eval_{name}']:.1%}" for r in (held[:1] if len(held) > 1 else []) + held[-1:]),
            )
            for name in ("recall@1", "accuracy")
            if job.makes in ("encoder", "classifier") and held and f"eval_{name}" in held[-1]
        ],
        *_heldout_rewards(run),
        ("tokens", f"{p['tokens']:,}" + (f" at {rate:,.0f}/s" if (rate := p["tokens_per_second"]) else "")),
        ("time", ", ".join(f"{k} {v:.0f} s" for k, v in p["seconds"].items())),
        ("memory", f"{p['peak_memory_bytes'] / 2**30:.1f} GiB, peak of one worker"),
        ("model", run.at("model")),
    ]
    show(rows, f"{job.stage}: finished")
    if job.rewards:
        warn(run, job)
    if job.eval.tasks and not _evaluate(run, job):
        return False
    print("Next:")
    for command in _next(run, job):
        print(f"  {command}")
    return True


def warn(run: Run, job: Job) -> None:
    """Writes the page of a run that learnt from rewards, and prints its warnings."""
    from lib.methods.rl import page

    for found in page.write(run, job):
        print(f"\nWarning, {found.name}: {found.text}")
        for line in found.lines():
            print(f"  {line}")
    print(f"Curves and warnings: {run.at(page.FILE)}\n")


def _heldout_rewards(run: Run) -> list[tuple[str, str]]:
    """Returns lines with the mean reward of greedy answers to held-out prompts, at the start, if it was measured, and at the end."""
    held = [r for r in run.metrics() if "eval_reward" in r]
    names = [k for k in held[-1] if k == "eval_reward" or k.startswith("eval_rewards/")] if held else []
    ends = held[:1] + held[-1:] if len(held) > 1 else held
    return [
        (f"held-out {name.removeprefix('eval_').removeprefix('rewards/')}", " → ".join(f"{r[name]:.3f}" for r in ends))
        for name in sorted(names)
    ]


def _next(run: Run, job: Job) -> list[str]:
    path, base = shlex.quote(run.path), shlex.quote(run.job()["model"]["base"])  # a new base was moved into the run
    if job.makes == "reward":
        return [f"python jobs/eval.py --reward {path} --tasks preference_accuracy {_data_options(job)}"]
    if job.stage == "pretrain":
        return _after_pretraining(run, job, path, base)
    if job.makes == "encoder":
        pairs = job.train.get("loss") != "simcse"
        evaluated = f"python jobs/eval.py --runs.base {base} --runs.embed {path} --tasks retrieval {_data_options(job)}"
        return [evaluated] * pairs + [f"serve run serve.app:app run={path} task=embed"]
    if job.makes == "classifier":
        task = "scores" if run.provenance()["data"]["kind"] == "pair" else "classification"
        return [f"python jobs/eval.py --runs.{job.stage} {path} --tasks {task} {_data_options(job)}"]
    task = job.data.source if job.data.source in DEMOS else f"perplexity {_data_options(job)}"
    commands = [f"python jobs/eval.py --runs.base {base} --runs.{job.stage} {path} --tasks {task}"]
    if job.makes == "adapter":
        return [*commands, f"serve run serve.app:app run={path} engine=transformers"]
    if job.stage == "sft":
        return commands + [
            f"python jobs/{s}.py --config configs/{s}.yaml --model.base {path}" for s in ("reward", "dpo")
        ]
    if not run.remote:
        code = f"from transformers import pipeline; print(pipeline('text-generation', '{run.path}/model')('Hello'))"
        commands.append(f'python -c "{code}"')
    return commands


def _after_pretraining(run: Run, job: Job, path: str, base: str) -> list[str]:
    if job.makes == "causal_lm":
        same = replace(job, data=replace(job.data, format="text")) if job.data.source == "demo" else job
        return [
            f"python jobs/eval.py --runs.start {base} --runs.end {path} --tasks perplexity {_data_options(same)}",
            f"python jobs/sft.py --config configs/sft.yaml --model.base {path}",
        ]
    tasks = [name for name, kind in KINDS.items() if kind == job.makes]
    tasks = [t for t in tasks if t != "next_segment" or job.train["objective"] == "nsp"]
    start = "" if new_heads(run.job()["model"]["base"], job.train["objective"]) else f"--runs.start {base} "
    return [f"python jobs/eval.py {start}--runs.end {path} --tasks {' '.join(tasks)} {_data_options(job)}"]


def _data_options(job: Job) -> str:
    """Returns the job's data section as command-line options, so that another command reads the same rows."""
    default, options = type(job.data)(), []
    for name, value in vars(job.data).items():
        if name == "source" or (name not in ("limit", "heldout_limit") and value != getattr(default, name)):
            value = "learn" if (name, value) == ("reasoning", "mask") else value  # an evaluation scores whole answers
            options += [f"--data.{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(options)


def _evaluate(run: Run, job: Job) -> bool:
    """Evaluates the finished run and its base on `eval.tasks` and writes the report into the run. Returns False if that failed."""
    from lib.evals.evaluate import evaluate
    from lib.evals.job import after
    from lib.evals.plan import plan
    from lib.evals.report.render import terminal

    command = _next(run, job)[0]
    try:
        terminal(evaluate(plan(after(job)), command), run.at("reports"))
    except (ValueError, RuntimeError) as e:
        print(f"\nThe model is finished, but its evaluation failed: {e}\nTry: {command}", file=sys.stderr)
        return False
    return True
