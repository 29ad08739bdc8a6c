"""MT-Bench: two-turn questions, each answer graded 1 to 10 by a judge (Zheng et al. 2023, https://arxiv.org/abs/2306.05685).

A row of its question.jsonl; the second turn follows the run's own first answer:

    {"question_id": 81, "category": "writing", "turns": ["Write …", "Now …"], "reference": ["…", "…"]}

Answers are greedy, whereas published scores sample in some categories. Grades of different judges aren't comparable.
"""

from __future__ import annotations

from lib.evals.context import Context
from lib.evals.report import length
from lib.evals.task import Example, Scores
from lib.evals.tasks.task_rows import read
from lib.generation.sampling import Sampling


def questions(address: str | None, limit: int | None) -> list[Example]:
    """Returns one example per question: `prompt` is its first turn, `reference` is {"then": second turn, "answers": [..] or None}."""
    rows = read("mt_bench", address, ("HuggingFaceH4/mt_bench_prompts", None, "train"), (), limit)
    out = []
    for place, row in rows:
        turns, number = row.get("turns") or row.get("prompt"), row.get("question_id", row.get("prompt_id"))
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(t, str) for t in turns):
            raise ValueError(f"task_data.mt_bench: {place} has no turns: [first, second]; it has {', '.join(row)}.")
        reference = {"then": turns[1], "answers": row.get("reference") or None}
        out.append(Example(f"mt_bench-{number}", [{"role": "user", "content": turns[0]}], reference))
    return out


def measure(context: Context) -> list[Scores]:
    """Returns the grades of every run's answers and, if there are several runs, the judge's win rates over the reference run."""
    job, panel = context.job, context.panel
    examples = questions(job.task_data.get("mt_bench"), job.limit)
    references = [e.reference["answers"] for e in examples]
    sampling = Sampling(max_new_tokens=job.longest("mt_bench"))
    first = {run: context.engine.generate(run, [e.prompt for e in examples], sampling) for run in job.runs}
    talks: dict[str, list[list[dict]]] = {}
    then = {}
    for run, future in first.items():
        talks[run] = [[*e.prompt, _said(a)] for e, a in zip(examples, future.result(), strict=True)]
        asked = [
            [*talk, {"role": "user", "content": e.reference["then"]}]
            for e, talk in zip(examples, talks[run], strict=True)
        ]
        then[run] = (asked, context.engine.generate(run, asked, sampling))
    found = []
    common = {"task": "mt_bench", "judge": panel.name, "decoding": "greedy"}
    for run, (asked, future) in then.items():
        replies = [a[0] for future in (first[run], then[run][1]) for a in future.result()]
        ids = [f"{e.id}{turn}" for turn in ("", ", turn 2") for e in examples]
        found.append(length.scores("mt_bench", run, ids, replies, decoding="greedy"))
        whole = [[*talk, _said(a)] for talk, a in zip(asked, future.result(), strict=True)]
        one = panel.grade(talks[run], [r[:1] if r else None for r in references])
        two = panel.grade(whole, references)
        answers = [talk[-1]["content"] for talk in talks[run]]
        talks[run] = whole
        both = [None if None in pair else sum(pair) / 2 for pair in zip(one, two, strict=True)]
        columns = {"grade": both, "turn_1": one, "turn_2": two}
        for name, values in columns.items():
            read = _read(examples, values)
            found.append(Scores(metric=name, run=run, unit="of 10", headline=name == "grade", **read, **common))
        scored = [{name: v[i] for name, v in columns.items() if v[i] is not None} for i in range(len(examples))]
        # The second turn follows the run's own first answer, so only the first turn's prompt is the same for all runs.
        context.record("mt_bench", run, examples, answers, scored)
    if len(job.runs) > 1:
        for run in context.challengers:
            pairs = panel.compare(list(zip(talks[run], talks[context.reference], strict=True)), references)
            read = _read(examples, [p.share for p in pairs]) | {
                "kind": "proportion",
                "versus": context.reference,
                "chance": 0.5,
            }
            found.append(Scores(metric="win_rate", run=run, headline=True, **read, **common))
    return found


def _read(examples: list[Example], values: list[float | None]) -> dict:
    """Returns ids and tops of the examples with a readable verdict."""
    at = [i for i, v in enumerate(values) if v is not None]
    return {"ids": [examples[i].id for i in at], "tops": [values[i] for i in at]}


def _said(answers: list) -> dict:
    return {"role": "assistant", "content": answers[0].text}
