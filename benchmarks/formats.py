"""Tries which quantised format loads in which engine: every method of jobs/quantize.py on one run, in one table.

    python benchmarks/formats.py [--run RUN] [--limit 200] [--out runs/formats]

Each method makes a run below --out. Each run (and the original) is loaded by transformers and by vLLM in its own process with one
core and answers held-out prompts one by one and 16 at a time (lib/methods/compression/measure.py); those that load are scored on the same
examples (lib/evals). For a run that doesn't load, the table has the first line of the error; if vLLM isn't installed, its column
notes that. Everything runs on this machine's CPU; GPUs are "not tried". Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="run, folder or hub name to quantise"
    )
    parser.add_argument("--limit", type=int, default=200, help="examples per task")
    parser.add_argument("--tasks", nargs="*", default=["demo", "perplexity"])
    parser.add_argument("--out", default="runs/formats", help="folder for the runs and reports")
    options = parser.parse_args()
    from lib import data
    from lib.generation import vllm_generator
    from lib.models import locate
    from lib.runtime import ray_session
    from lib.runtime.isolated_task import apart

    ray_session.prepare()
    from lib.config.command_line import Request
    from lib.evals import plan as evals
    from lib.evals.evaluate import evaluate
    from lib.evals.job import EvalJob
    from lib.methods.compression import measure
    from lib.methods.quantization import work
    from lib.methods.quantization.job import QuantizeJob, Source, plan
    from lib.models.quantization.schemes import METHODS
    from lib.run import Run

    engines = ["transformers", "vllm"] if vllm_generator.installed() else ["transformers"]
    base, _ = locate.locate(options.run)
    runs, found = {"before": base}, {}
    with ray_session.connected():
        for name in METHODS:
            made = Run(f"{options.out}/{name}")
            if not made.finished():
                made.remove("")
                asked = QuantizeJob(made.path, Source(options.run), name, tasks=[], engine="transformers")
                work.produce(plan(Request(asked)))
            runs[name] = made.path
        job = QuantizeJob(method="w8a8")
        prompts = data.prompts(data.load(job.data, ("chat", "text"), training=False).heldout, measure.TOGETHER)
        for engine in engines:
            for name, path in runs.items():
                found[name, engine] = apart(Run(options.out), _try, path, engine == "vllm", job, prompts)
                print(name, engine, found[name, engine], flush=True)
        scores = {}
        for engine in engines:
            loaded = {n: p for n, p in runs.items() if not isinstance(found[n, engine], str)}
            asked = EvalJob(
                f"{options.out}/eval-{engine}", loaded, tasks=options.tasks, limit=options.limit, engine=engine
            )
            scores[engine] = evaluate(evals.plan(asked))
    sizes = {n: measure.weights(locate.snapshot(p)) for n, p in runs.items()}
    text = table(sizes, found, scores)
    Path(options.out, "formats.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _try(path: str, vllm: bool, job, prompts: list):
    """Returns the model's memory and speed, or why it can't be loaded, as text, since not every exception can be pickled."""
    from lib.methods.compression.measure import needs

    try:
        return needs(path, vllm, job.dtype, prompts, job.max_new_tokens)
    except Exception as e:  # whatever the engine raises is the result
        lines = [x.strip() for x in str(e).splitlines() if x.strip() and "validation error for" not in x]
        return f"{type(e).__name__}: {lines[0][:90]}"


def table(sizes: dict[str, int], found: dict, scores: dict) -> str:
    """Returns a Markdown table with a line per method and engine."""
    from lib.evals.report.formatting import show
    from lib.evals.report.render import table as score_rows

    asked = {engine: [row for row in score_rows(r) if row["main"]] for engine, r in scores.items()}
    labels = list(dict.fromkeys(row["label"] for rows in asked.values() for row in rows))
    head = ["method", "MB on disk", "engine on CPU", "MiB while answering", "tokens/s at 1", "at 16", *labels]
    out = [f"| {' | '.join(head)} |", "|---|---:|---|---:|---:|---:|" + "---:|" * len(labels)]
    for name, size in sizes.items():
        for engine in scores:
            n, cells = found[name, engine], [name, f"{size / 1e6:.0f}", engine]
            if isinstance(n, str):
                out.append(f"| {' | '.join(cells)} | doesn't load: {n} |" + " |" * (2 + len(labels)))
                continue
            cells += [f"{n.answering_bytes >> 20:,} ({(n.answering_bytes - n.empty_bytes) >> 20:,})"]
            cells += [f"{r.median:,.0f} [{r.low:,.0f}–{r.high:,.0f}]" for r in (n.alone, n.together)]
            by = {row["label"]: row["metrics"] for row in asked[engine]}
            cells += [show(by[x][name]) if x in by and name in by[x] else "" for x in labels]
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, "", "On a GPU, transformers and vLLM: not tried. In brackets, memory beyond the empty process; ranges of speeds.", ""])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
