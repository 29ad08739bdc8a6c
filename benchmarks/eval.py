"""Compares our evaluation with lm-eval's hf backend: the same tasks, model and machine, in one run.

    python benchmarks/eval.py [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--questions 40] [--texts 12]

The tasks are lm-eval's kinds on the demo's generated data: multiple choice (which of four ticket lines is right, after two solved
examples), answers up to the end of a line, and the perplexity of whole texts. lm-eval runs in its own process with every core and the
best of the tried batch sizes; ours is jobs/eval.py's engine with one and with two processes. Times exclude loading the model on both
sides; float32, so that scores can be equal. Exits with 1 if a score differs by more than 1e-4 (relative).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
KINDS = {
    "bench_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    },
    "bench_answer": {
        "output_type": "generate_until",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "bench_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": m} for m in ("word_perplexity", "bits_per_byte")],
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        return theirs(**json.loads(options.theirs))
    from lib.models import locate

    where, _ = locate.locate(options.model)
    with tempfile.TemporaryDirectory() as folder:
        files = tasks(Path(folder), options.questions, options.texts)
        found = {}
        for size in (4, 16, 64):
            asked = json.dumps({"model": locate.path(where), "folder": folder, "batch": size})
            command = [sys.executable, __file__, "--theirs", asked]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                print(f"lm-eval, batches of {size}: {out.stderr[-500:]}", file=sys.stderr)
                return 1
            found[f"lm-eval hf, batches of {size}"] = json.loads(out.stdout.splitlines()[-1])
        for workers in (1, 2):
            found[f"ours, {workers} process{'es' * (workers > 1)}"] = ours(options.model, files, folder, workers)
    return show(found)


def tasks(folder: Path, questions: int, texts: int) -> list[str]:
    """Writes the data and the YAML files of the three tasks; returns the YAML files."""
    import yaml

    from lib.evals.tasks.demo import DemoTask

    examples = DemoTask().examples(questions + 3)
    solutions = [
        (e.prompt[-1]["content"], e.reference if isinstance(e.reference, str) else str(e.reference)) for e in examples
    ]
    solved = "".join(f"{q}\nTicket: {a}\n\n" for q, a in solutions[:2])
    rng, rows = random.Random(0), []
    for q, a in solutions[3:]:
        wrong = rng.sample([x for _, x in solutions if x != a], 3)
        choices = [f" {c}" for c in [a, *wrong]]
        rng.shuffle(choices)
        row = {"question": f"{solved}{q}\nTicket:", "choices": choices, "answer": choices.index(f" {a}")}
        rows.append(
            row | {"text": "" if len(rows) >= texts else "\n".join(f"{q} {a}" for q, a in solutions[len(rows) :][:8])}
        )
    out = []
    for name, kind in KINDS.items():
        mine = [r for r in rows if r["text"]] if name == "bench_text" else rows
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        whole = {
            "task": name,
            **data,
            "test_split": "test",
            "doc_to_text": "{{question}}",
            **kind,
            "metadata": {"version": 1},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
        out.append(str(folder / f"{name}.yaml"))
    return out


def theirs(model: str, folder: str, batch: int) -> int:
    """Runs lm-eval's hf backend in its own process; prints its seconds and scores."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(os.cpu_count() or 1)
    lm = HFLM(pretrained=model, dtype="float32", batch_size=batch, device="cpu")
    manager, seconds, scores = TaskManager(include_path=folder, include_defaults=False), {}, {}
    for name in KINDS:
        began = time.time()
        results = simple_evaluate(
            model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, verbosity="ERROR", log_samples=False
        )["results"][name]
        seconds[name] = time.time() - began
        scores |= {
            f"{name} {k.split(',')[0]}": v for k, v in results.items() if k.endswith(",none") and "stderr" not in k
        }
    print(json.dumps({"seconds": seconds, "scores": scores}))
    return 0


def ours(model: str, files: list[str], folder: str, workers: int) -> dict:
    """Returns the seconds of each task, from the first request to its scores with the model already loaded, and the scores."""
    from lib.evals.context import Context
    from lib.evals.job import EvalJob
    from lib.evals.measures import lm_eval_harness
    from lib.evals.plan import plan
    from lib.evals.report import summary
    from lib.generation.pool import Engine
    from lib.generation.sampling import Sampling
    from lib.runtime.ray_session import connect

    request = EvalJob(
        run=f"{folder}/ours-{workers}", runs={"m": model}, tasks=[f"lm_eval:{f}" for f in files], dtype="float32", limit=None
    )  # fmt: skip
    planned = plan(request)
    connect()
    import ray

    seconds, scores = {}, {}
    try:
        with Engine(planned.specs, workers, say=lambda line: None) as engine:
            warm = [
                f"warm {i}" for i in range(128)
            ]  # two shards, so that every process loads the model before the timing
            engine.generate("m", warm, Sampling(max_new_tokens=1)).result()
            context = Context(request, engine, None, None)
            for name in request.tasks:
                began = time.time()
                found = lm_eval_harness.measure(name, context)
                seconds[found[0].task] = time.time() - began
                scores |= {f"{s.task} {s.metric}": summary.metric(s, 0).value for s in found}
    finally:
        ray.shutdown()
    return {"seconds": seconds, "scores": scores}


def show(found: dict[str, dict]) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds of work")
    for column in ("", *KINDS, "all", "against lm-eval's best batch size", "… its best for each task"):
        table.add_column(column)
    total = {name: sum(f["seconds"].values()) for name, f in found.items()}
    one_size = min(t for n, t in total.items() if n.startswith("lm-eval"))
    best = {k: min(f["seconds"][k] for n, f in found.items() if n.startswith("lm-eval")) for k in KINDS}
    for name, f in found.items():
        cells = [f"{f['seconds'][k]:.1f} ({best[k] / f['seconds'][k]:.2f}×)" for k in KINDS]
        against = [f"{seconds / total[name]:.2f}×" for seconds in (one_size, sum(best.values()))]
        table.add_row(name, *cells, f"{total[name]:.1f}", *against)
    Console(width=150).print(table)
    one, two = (total[n] for n in found if n.startswith("ours"))
    print(f"two processes against one: {one / two:.2f}×")
    reference = next(iter(found.values()))["scores"]
    differing = [
        f"{name}: {key} {f['scores'][key]} instead of {v}"
        for name, f in found.items()
        for key, v in reference.items()
        if abs(f["scores"][key] - v) > 1e-4 * max(abs(v), 1e-9)
    ]
    print("\n".join(differing) or f"scores equal to 1e-4: {', '.join(f'{k} {v:.4g}' for k, v in reference.items())}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
