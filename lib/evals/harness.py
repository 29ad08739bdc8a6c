"""lm-eval's own tasks (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness): its definitions, our engine.

    lm_eval:arc_easy            one of its library, whose data is on the hub
    lm_eval:path/to/task.yaml   a task file of yours, with local data (dataset_path: json, dataset_kwargs: {data_files: …})

lm-eval renders the prompts and scores what comes back; likelihoods and answers are computed by the same shards as
everything else. Metrics of single documents become ours, with their intervals; those that exist only for the whole
set (BLEU over a corpus, say) are left out and named.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from lib.evals.context import Context
from lib.evals.task import Scores
from lib.sampling import Sampling

PREFIX = "lm_eval:"


def check(name: str) -> None:
    """Raises ValueError where lm-eval, its task or the file isn't there. Loads no data."""
    if not importlib.util.find_spec("lm_eval"):
        raise ValueError(f'tasks: {name} needs lm-eval: pip install "shoestring[eval]".')
    manager, asked = _manager(name)
    if asked not in manager.all_tasks:
        from lib.cli import nearest

        raise ValueError(f"tasks: lm-eval has no {asked}.{nearest(asked, manager.all_tasks)} Or give a .yaml file.")


def called(name: str) -> str:
    """What lm-eval calls the task: arc_easy of lm_eval:arc_easy, or what the file says. Raises ValueError for the file."""
    asked = name.removeprefix(PREFIX)
    if not asked.endswith((".yaml", ".yml")):
        return asked
    import yaml

    path = Path(asked).expanduser()
    if not path.is_file():
        raise ValueError(f"tasks: {name}: there is no file {path.absolute()}.")
    if not (found := (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("task")):
        raise ValueError(f"tasks: {name}: {path} has no key task, which names it.")
    return found


def _manager(name: str):
    """(lm-eval's TaskManager, the task's name in it)."""
    from lm_eval.tasks import TaskManager

    found, path = called(name), Path(name.removeprefix(PREFIX)).expanduser()
    if found == name.removeprefix(PREFIX):
        return TaskManager(), found
    return TaskManager(include_path=str(path.parent), include_defaults=False), found


def measure(name: str, context: Context) -> list[Scores]:
    """Every metric that is a mean, or one of lm-eval's perplexities, for every run."""
    from lm_eval import simple_evaluate

    manager, asked = _manager(name)
    loaded = manager.load([asked])["tasks"]
    found, whole = [], set()
    for run in context.job.runs:
        results = simple_evaluate(
            model=_adapter(context, run), tasks=list(loaded.values()), limit=context.job.limit, task_manager=manager,
            log_samples=True, bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
        for task, samples in results["samples"].items():
            better, version = loaded[task].higher_is_better(), str(results["versions"].get(task, ""))
            aggregations = {m: f.__name__ for m, f in loaded[task].aggregation().items()}
            for place, (label, metric, rows) in enumerate(_columns(samples)):
                parts = _parts(aggregations.get(metric, ""), [s[metric] for s in rows])
                if parts is None:
                    whole.add(metric)
                    continue
                ids = [f"{task}-{s['doc_id']}" for s in rows]
                higher = "higher" if better.get(metric, True) else "lower"
                found.append(Scores(task, label, run, ids, *parts, higher, headline=place == 0, version=version))
    if whole:
        context.engine.say(f"{name}: {', '.join(sorted(whole))} not shown: no interval from single documents")
    return found


def _columns(samples: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """(label, metric, its samples): lm-eval gives every document once per filter."""
    filters = list(dict.fromkeys(s["filter"] for s in samples))
    out = []
    for f in filters:
        rows = [s for s in samples if s["filter"] == f]
        out += [(m if len(filters) == 1 else f"{m}, {f}", m, rows) for m in rows[0]["metrics"]]
    return out


def _parts(aggregation: str, values: list) -> tuple[list[float], list[float] | None, str] | None:
    """(tops, bottoms, kind) of lm_eval.api.metrics' aggregations; None for those that are not a ratio of sums."""
    if aggregation == "mean":
        tops = [float(v) for v in values]
        return tops, None, "proportion" if set(tops) <= {0.0, 1.0} else "mean"
    if aggregation == "perplexity":  # of log-likelihoods, one a document
        return [-float(v) for v in values], None, "perplexity"
    if aggregation == "weighted_perplexity":  # (log-likelihood, words or bytes)
        return [-float(v) for v, _ in values], [float(w) for _, w in values], "perplexity"
    if aggregation == "bits_per_byte":
        return [-float(v) / math.log(2) for v, _ in values], [float(w) for _, w in values], "mean"
    return None


def _adapter(context: Context, run: str):
    """The engine as lm-eval's LM. Requests come as a whole list each, so the engine can sort and shard them."""
    from lm_eval.api.model import LM

    class EngineLM(LM):
        def loglikelihood(self, requests):
            prompts, continuations = ([r.args[i] for r in requests] for i in (0, 1))
            scores = context.engine.score(run, prompts, continuations).result()
            return [(s.logprob, s.greedy) for s in scores]

        def loglikelihood_rolling(self, requests):
            texts = [r.args[0] for r in requests]
            return [s.logprob for s in context.engine.score(run, [None] * len(texts), texts).result()]

        def generate_until(self, requests):
            answers: list[str | None] = [None] * len(requests)
            alike: dict[Sampling, list[int]] = {}
            for i, r in enumerate(requests):
                alike.setdefault(_sampling(r.args[1], context), []).append(i)
            for sampling, at in alike.items():
                asked = context.engine.generate(run, [requests[i].args[0] for i in at], sampling)
                for i, (answer,) in zip(at, asked.result(), strict=True):
                    answers[i] = _before(answer.text, sampling.stop)
            return answers

    return EngineLM()


def _sampling(settings: dict, context: Context) -> Sampling:
    """lm-eval's generation_kwargs: greedy unless do_sample, 256 tokens unless max_gen_toks."""
    stop = settings.get("until") or []
    drawn = (
        {"temperature": settings.get("temperature") or 1.0, "seed": context.job.seed}
        if settings.get("do_sample")
        else {}
    )
    drawn |= {"top_p": settings["top_p"]} if drawn and settings.get("top_p") else {}
    longest = settings.get("max_gen_toks") or settings.get("max_new_tokens") or 256
    return Sampling(max_new_tokens=longest, stop=(stop,) if isinstance(stop, str) else tuple(stop), **drawn)


def _before(text: str, stop: tuple[str, ...]) -> str:
    """The text up to the first of the stop strings."""
    for s in stop:
        text = text.split(s)[0] if s else text
    return text
