"""lm-eval's tasks (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness): its definitions and tokenisation, our engine.

    lm_eval:arc_easy            a task of its library, with data on the hub
    lm_eval:path/to/task.yaml   your own task file (lib/evals/tasks/harness_tasks.py)

lm-eval renders and tokenises the prompts and scores the results; the engine computes likelihoods and answers, in shards like
those of any other task. Per-document metrics are reported with intervals; metrics that exist only for the whole set (such as
corpus BLEU) are left out and listed.
"""

from __future__ import annotations

import math

from lib.evals.context import Context
from lib.evals.report import length
from lib.evals.task import Example, Scores
from lib.evals.tasks import harness_tasks
from lib.evals.tasks.harness_tasks import LmEval
from lib.generation.sampling import Sampling


def measure(name: str, context: Context) -> list[Scores]:
    """Returns every metric that is a mean, or one of lm-eval's perplexities, for every run, and records every document."""
    from lm_eval import simple_evaluate

    settings = context.job.lm_eval
    manager, asked = harness_tasks.manager(name)
    loaded = manager.load([asked])["tasks"]
    found, whole = [], set()
    for run in context.job.runs:
        model = _adapter(context, run)
        results = simple_evaluate(
            model=model, tasks=list(loaded.values()), limit=context.job.limit, task_manager=manager,
            num_fewshot=settings.num_fewshot, apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.fewshot_as_multiturn, system_instruction=settings.system_instruction,
            log_samples=True, bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
        for task, samples in results["samples"].items():
            better, version = loaded[task].higher_is_better(), _version(results["versions"].get(task, ""), settings)
            aggregations = {m: f.__name__ for m, f in loaded[task].aggregation().items()}
            columns = []
            for label, metric, rows in _columns(samples):
                parts = _parts(aggregations.get(metric, ""), [s[metric] for s in rows])
                if parts is None:
                    whole.add(metric)
                    continue
                ids = [f"{task}-{s['doc_id']}" for s in rows]
                tops, bottoms, kind = parts
                higher = "higher" if better.get(metric, True) else "lower"
                columns.append(Scores(task, label, run, ids, tops, bottoms, kind=kind, better=higher, version=version))
            # As in lm-eval's own tables and in papers: length-normalised accuracy if the task has it.
            head = next((c for c in columns if c.metric.startswith("acc_norm")), columns[0] if columns else None)
            for c in columns:
                c.headline = c is head
                c.chance = _chance(loaded[task], c.metric, samples) if set(c.tops) <= {0.0, 1.0} else None
            found += columns
            cut = {f"{t}-{doc}": float(was) for (t, doc), was in model.cut.items() if t == task}
            if cut:
                found.append(
                    Scores(task, length.METRIC, run, list(cut), list(cut.values()), kind="proportion", better="")
                )
            _record(context, task, run, loaded[task], samples, columns)
    for s in found:  # lm-eval doesn't declare a metric's range: it is a proportion if every run's scores are 0s and 1s
        alike = [o for o in found if (o.task, o.metric) == (s.task, s.metric)]
        if any(o.kind == "mean" for o in alike):
            s.kind = "mean"
    if whole:
        context.engine.say(f"{name}: {', '.join(sorted(whole))} not shown: no interval from single documents")
    return found


def _chance(loaded, metric: str, samples: list[dict]) -> float | None:
    """Returns the expected accuracy of guessing among the choices; None for metrics that are not an accuracy over choices."""
    if loaded.OUTPUT_TYPE != "multiple_choice" or not metric.startswith(("acc", "exact_match")):
        return None
    each = []
    for s in {s["doc_id"]: s for s in samples}.values():
        right = s["target"] if isinstance(s["target"], list) else [s["target"]]
        each.append(len(set(right)) / len(loaded.doc_to_choice(s["doc"])))
    return sum(each) / len(each) if each else None


def _version(version, settings: LmEval) -> str:
    """Returns the task's version with the settings that change its prompts; scores of different versions are not compared."""
    default = LmEval(allow_code=settings.allow_code)
    changed = [f"{k}={v}" for k, v in vars(settings).items() if v != getattr(default, k)]
    return ", ".join([str(version), *changed])


def _columns(samples: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """Returns (label, metric, its samples) per filter and metric: lm-eval returns every document once per filter."""
    filters = list(dict.fromkeys(s["filter"] for s in samples))
    out = []
    for f in filters:
        rows = [s for s in samples if s["filter"] == f]
        out += [(m if len(filters) == 1 else f"{m}, {f}", m, rows) for m in rows[0]["metrics"]]
    return out


def _parts(aggregation: str, values: list) -> tuple[list[float], list[float] | None, str] | None:
    """Returns (tops, bottoms, kind) for an aggregation of lm_eval.api.metrics; None if it is not a ratio of sums."""
    if aggregation == "mean":
        tops = [float(v) for v in values]
        return tops, None, "proportion" if set(tops) <= {0.0, 1.0} else "mean"
    if aggregation == "perplexity":  # of one log-likelihood per document
        return [-float(v) for v in values], None, "perplexity"
    if aggregation == "weighted_perplexity":  # (log-likelihood, words or bytes)
        return [-float(v) for v, _ in values], [float(w) for _, w in values], "perplexity"
    if aggregation == "bits_per_byte":
        return [-float(v) / math.log(2) for v, _ in values], [float(w) for _, w in values], "mean"
    return None


def _record(context: Context, task: str, run: str, loaded, samples: list[dict], columns: list[Scores]) -> None:
    """Records every document for examples.jsonl: prompt, answer and, for multiple choice, the log probability of each choice."""
    scores: dict[str, dict] = {}
    for c in columns:
        for i, id in enumerate(c.ids):
            scores.setdefault(id, {})[c.metric] = (c.tops[i], c.bottoms[i]) if c.bottoms else c.tops[i]
    examples, answers, details = [], [], []
    for s in {s["doc_id"]: s for s in reversed(samples)}.values():  # the first filter's sample of each document
        bare = loaded.doc_to_text(s["doc"])  # without few-shot examples, for the contamination search
        context_text = str(s["arguments"][0][0])
        prompt = [{"role": "user", "content": bare if isinstance(bare, str) and bare else context_text}]
        examples.append(Example(f"{task}-{s['doc_id']}", prompt, s["target"]))
        replies = [r[0] for r in s["resps"]]
        detail = {"asked": context_text}
        if isinstance(replies[0], tuple):  # (log probability, whether it is the greedy continuation)
            choices = [
                {"text": a[1], "logprob": p, "greedy": g} for a, (p, g) in zip(s["arguments"], replies, strict=True)
            ]
            answers.append(max(choices, key=lambda c: c["logprob"])["text"])
            detail["choices"] = choices
        elif isinstance(replies[0], float):  # log likelihood of a whole text
            answers.append("")
            detail["logprob"] = replies[0]
        else:
            answers.append(str(replies[0]))
        details.append(detail)
    context.record(task, run, examples, answers, [scores.get(e.id, {}) for e in examples], "", details)


def _adapter(context: Context, run: str):
    """Returns an lm-eval LM backed by the engine. lm-eval passes all requests as one list, so the engine can sort and shard them."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import has_bos_prefix
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from transformers import AutoConfig, AutoTokenizer

    from lib.models import locate

    folder = locate.path(context.engine.specs[run].base)
    config = AutoConfig.from_pretrained(folder).get_text_config()
    # The rule of lm-eval (lm_eval/models/huggingface.py, max_length).
    window = next(
        (n for k in ("n_positions", "max_position_embeddings", "n_ctx") if (n := getattr(config, k, None))), 2048
    )

    class EngineLM(TemplateLM):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer_name = folder

        def __init__(self):
            super().__init__()
            self.cut: dict[tuple[str, int], bool] = {}
            """{(task, document id): whether the answer was cut off}"""

        @property
        def eot_token_id(self):
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self):
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else bos

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            """Adds the tokenizer's special tokens (such as BOS) unless the text begins with BOS, like lm-eval's hf backend."""
            if add_special_tokens is None:
                add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )  # fmt: skip

        def _loglikelihood_tokens(self, requests, **kwargs):
            pieces = [_fit(before, after, window) for _, before, after in requests]
            scores = context.engine.score(run, *([p[i] for p in pieces] for i in (0, 1))).result()
            return [(s.logprob, s.greedy) for s in scores]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            cut = [
                [
                    tuple(map(tuple, make_disjoint_window(w)))
                    for w in get_rolling_token_windows(
                        self.tok_encode(r.args[0]), prefix_token=self.prefix_token_id, max_seq_len=window, context_len=1
                    )
                ]
                for r in requests
            ]
            flat = [w for windows in cut for w in windows]
            scores = iter(context.engine.score(run, [a for a, _ in flat], [b for _, b in flat]).result())
            return [sum(next(scores).logprob for _ in windows) for windows in cut]

        def generate_until(self, requests, disable_tqdm=False):
            answers: list[str | None] = [None] * len(requests)
            alike: dict[Sampling, list[int]] = {}
            for i, r in enumerate(requests):
                alike.setdefault(_sampling(r.args[1], context), []).append(i)
            for sampling, at in alike.items():
                room = window - sampling.max_new_tokens
                if room < 1:
                    raise ValueError(
                        f"{run}: {sampling.max_new_tokens} tokens of an answer leave no room for the question in its window of {window}. "
                        "Lower max_gen_toks of the task."
                    )
                prompts = [tuple(self.tok_encode(requests[i].args[0])[-room:]) for i in at]
                asked = context.engine.generate(run, prompts, sampling)
                for i, (answer,) in zip(at, asked.result(), strict=True):
                    answers[i] = _before(answer.text, sampling.stop)
                    ended = answer.finished or answers[i] != answer.text
                    self.cut[requests[i].task_name, requests[i].doc_id] = not ended
            return answers

    return EngineLM()


def _fit(before: list[int], after: list[int], window: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Truncates both parts at the beginning to fit the window, as lm-eval does."""
    after = after[-window:]
    return tuple(before[-(window + 1 - len(after)) :]), tuple(after)


def _sampling(settings: dict, context: Context) -> Sampling:
    """Converts lm-eval's generation_kwargs: greedy unless do_sample is set, 256 tokens unless max_gen_toks is."""
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
    """Returns the text before the first stop string."""
    for s in stop:
        text = text.split(s)[0] if s else text
    return text
