"""The plan of an evaluation, and every check of its job that needs no model in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from lib.config import ranges
from lib.data.sources import DEMOS
from lib.errors import nearest
from lib.evals import registry
from lib.evals.job import EvalJob, needs
from lib.evals.judging import llm_judge, openai_client
from lib.evals.measures import bertscore, classification, embedding, generation, mt_bench, refusals
from lib.evals.report import gate, length, time_estimate
from lib.evals.rows import ROWS
from lib.evals.tasks import harness_tasks
from lib.evals.tasks.xstest import XsTest
from lib.generation import decoding, model_spec
from lib.generation.model_spec import Spec
from lib.models import locate, quantized_formats
from lib.run import Run
from lib.runtime import hardware, logs


@dataclass
class Plan:
    job: EvalJob
    specs: list[Spec]
    scorer: str | None
    """The reward run's name in the engine."""
    checks: dict[str, object]
    """{task: the lib.data Check of the rows it reads}"""
    counts: dict[str, int]
    """{task: number of examples}, for tasks with examples of their own."""
    finished = False
    """Always False: an evaluation can be rerun, and reads earlier results from the ledger (lib/generation/result_cache.py)."""

    def lines(self) -> list[tuple[str, str]]:
        """Returns the plan as (label, text) rows of a table."""
        j, out = self.job, [("report", f"{Run(self.job.run).at('reports')}/report.html")]
        out += [("reward" if s.reward else "run", f"{s.name:<8} {s.base}") for s in self.specs]
        out += [("judge", f"{j.judge.model} at {j.judge.url}")] if j.judge.url else []
        out += [
            ("tasks", ", ".join(j.tasks)),
            ("decoding", "; ".join(str(d) for d in j.decodings())),
            ("engine", "vLLM" if j.vllm() else "transformers"),
            ("examples", f"at most {j.limit} per task, seed {j.seed}" if j.limit else "all"),
        ]
        if self.counts and j.runs:
            written = sum(d.written for d in j.decodings())
            each, tokens = (
                sum(self.counts.values()) * written,
                sum(n * j.longest(t) for t, n in self.counts.items()) * written,
            )
            answers, cells = each * len(j.runs), len(self.counts) * len(j.runs) * len(j.decodings())
            most = f"{tokens * len(j.runs):,} tokens at most"
            out.append(("work", f"{cells} cells (run, task, decoding) of answers: {answers:,} answers, {most}"))
            bases = [s.base for s in self.specs if not s.reward]
            time = time_estimate.line(bases, tokens, j.workers, j.usd_per_hour, j.device)
            out += [("time", time)] if time else []
        if {"win_rate", "kl"} & set(j.tasks):
            out.append(("compared", f"{', '.join(j.challengers())} with {j.reference_run()}"))
        seen: list[str] = []
        for check in self.checks.values():
            seen += [line.removeprefix("data: ") for line in check.lines()]
        return out + [("data", line) for line in dict.fromkeys(seen)] + [logs.line(Run(j.run))]


def plan(job: EvalJob) -> Plan:
    """Checks a job. Raises ValueError with every problem found, one per line, each naming its key."""
    problems: list[str] = []

    def attempt(f, *args):
        try:
            return f(*args)
        except ValueError as e:
            problems.append(str(e))

    if not job.tasks:
        problems.append(f"tasks: there are none to run. Known: {', '.join(registry.names())}.")
    counts: dict[str, int] = {}
    metrics: dict[str, list[str] | None] = {}
    for name in job.tasks:
        attempt(registry.get, name, job.task_data, job.lm_eval)
        metrics[attempt(harness_tasks.called, name) if name.startswith(harness_tasks.PREFIX) else name] = None
        if name in registry.TASKS:
            task = registry.task(name, job.task_data.get(name))
            examples = attempt(task.examples, job.limit) or []
            counts[name] = len(examples)
            if job.gate:  # scoring an empty answer yields the names of the metrics
                found = [m for e in examples[:20] for m in task.score(e, "")]
                judged = ["rule_agrees"] if job.judge.url and isinstance(task, XsTest) else []
                metrics[name] = [*dict.fromkeys(found), *generation.ALWAYS, *judged]
    problems += unfiled(job.task_data)
    if not job.decoding:
        problems.append("decoding: there is none. Say greedy, or t=0.7,top_p=0.9.")
    decodings = [d for text in job.decoding if (d := attempt(decoding.parse, text, job.longest(""), job.seed))]
    if len({str(d) for d in decodings}) < len(decodings):
        problems.append(f"decoding: two of {'; '.join(job.decoding)} are the same.")
    voters = [name for name, make in registry.TASKS.items() if hasattr(make(None), "final")]
    unread = [t for t in job.tasks if t in (*registry.TASKS, "bertscore") and t not in voters]
    for d in decodings:
        if d.head == "majority" and unread:
            problems.append(
                f"decoding: {d.name} votes on final answers, which {', '.join(unread)} doesn't read. It goes with {', '.join(voters)}."
            )
        if d.by_reward and not job.reward:
            problems.append(f"reward: {d.name} asks a reward run which answer is best. Set reward: runs/reward.")
        if (other := d.sampling.other) and other not in job.runs:
            near = nearest(other, [*job.runs, "lookup"])
            problems.append(f"decoding: {d.name}: {other} is not one of runs ({', '.join(job.runs)}).{near}")
    makes = {registry.KINDS.get(name, "causal_lm") for name in job.tasks}
    if len(makes) > 1:
        apart = {m: [t for t in job.tasks if registry.KINDS.get(t, "causal_lm") == m] for m in sorted(makes)}
        needed = "; ".join(f"{', '.join(tasks)} {locate.NOUNS[m]}" for m, tasks in apart.items())
        problems.append(f"tasks: these need different kinds of model: {needed}. Evaluate them apart.")
    kind = next(iter(makes)) if len(makes) == 1 else "causal_lm"
    also = embedding.ALSO if kind == "encoder" else ("adapter",) if kind == "causal_lm" else ()
    vllm = kind == "causal_lm" and len(decodings) == len(job.decoding) and bool(attempt(job.vllm))
    specs = [
        replace(s, vllm=vllm)
        for name, base in job.runs.items()
        if len(makes) < 2 and (s := attempt(model_spec.find, f"runs.{name}", name, base, job.dtype, kind, also))
    ]
    for s in specs:
        attempt(quantized_formats.check_engine, f"runs.{s.name}", s.base, s.vllm)
    scorer = "reward" if job.reward else None
    if job.reward:
        if scorer in job.runs:
            problems.append("runs.reward: reward is what the reward run is called here. Give the run another name.")
        reward = attempt(model_spec.find, "reward", scorer, job.reward, job.dtype, "reward")
        specs += [reward] if reward else []
    longest = {name: job.longest(name) for name in job.tasks if name in length.LONGEST}
    problems += length.problems(longest, {s.name: s.base for s in specs if not s.reward})
    problems += needs(job) + ranges.values(asdict(job)) + hardware.room("workers", job.workers, job.device)
    problems += openai_client.problems(job.judge, job.runs)
    attempt(llm_judge.prompts, job.judge.prompts)
    if "mt_bench" in job.tasks:
        attempt(mt_bench.questions, job.task_data.get("mt_bench"), job.limit)
    if "refusal_labels" in job.tasks:
        attempt(refusals.labelled, job.task_data.get("refusal_labels"))
    if "bertscore" in job.tasks:
        attempt(bertscore.examples, job.task_data, job.limit)
        problems += [p] if (p := bertscore.problem(job.bert_encoder)) else []
    problems += gate.problems(job.gate, metrics, [*job.runs, *([scorer] if scorer else [])], job.decoding)
    checks = {}
    for name, want in ROWS.items():
        if name in job.tasks and not (job.data.source == "demo" and want == ("prompt",)):
            checks[name] = attempt(_rows, job, name, want)
    problems += classification.problems(job.tasks, specs, checks.get("classification"))
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return Plan(replace(job, run=Run(job.run).path), specs, scorer, checks, counts)


def unfiled(task_data: dict[str, str]) -> list[str]:
    """Returns a problem for each name in task_data that no file-based task has."""
    filed = [t for t in registry.TASKS if t not in DEMOS]
    filed += ["perplexity", "preference_accuracy", "mt_bench", "bertscore", "refusal_labels", *registry.KINDS]
    wrong = sorted(task_data.keys() - set(filed))
    return [f"task_data.{name}: no task of that name takes a file.{nearest(name, filed)}" for name in wrong]


def _rows(job: EvalJob, task: str, want: tuple[str, ...]):
    from lib.data import check

    try:
        checked = check(job.data_for(task), want, training=False)
        checked.need_heldout()
    except ValueError as e:
        named = f"task_data.{task}" if job.task_data.get(task) else "data.source"
        raise ValueError(str(e).replace("data.source", named)) from None
    return checked
