"""Measures what each usual decoding and attention optimisation gains on this machine, in one run.

    python benchmarks/decoding.py [--model NAME|RUN] [--prompts 32] [--tokens 48] [--dtype float32] [--plot docs/decoding.png]

Every candidate generates the same number of tokens greedily (without ending early) after the same prompts of exactly 32 and 256
tokens (pages of Python's manual), with the same weights, dtype and number of threads. Speed is new tokens per second, including the
time to read the prompt. The naive loop is what a beginner writes: one prompt at a time, read again in full for every token. The other
candidates are transformers' generate without and with its KV cache, with the static cache, and with each attention; our
TransformersGenerator; and vLLM (in its own process, idle while others run). Prompts share no prefix, so prefix sharing gains nothing,
and vLLM's prefix cache is emptied before each measurement.

The candidates take turns, --repeats times, with different prompts each time. A speed is the median over the turns, a ratio the median
of the ratios within a turn, so that a temporarily slow machine is slow for all. Every answer is compared with that of generate with
its KV cache and sdpa, all prompts in one batch. Exits with 1 if one differs in float32; in bfloat16, rounding decides near-ties
(lib/generation/transformers_generator.py).

Folklore credits the KV cache with 2-3x and vLLM with 10-20x over the naive loop; the table shows the ratios on this machine. The cache
saves rereading T tokens for each new one, so its gain grows with T, but stays below T where a single-token pass is bound by reading the
weights from memory; a batch uses the same weights for more rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
NAIVE, REFERENCE = "naive loop", "generate, KV cache, sdpa"
Decode = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, number of new tokens) → the new tokens of each prompt, all prompts in one batch."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub name, folder or run")
    parser.add_argument("--prompts", type=int, default=32, help="the largest batch")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each answer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 256], help="tokens of the prompts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads per candidate; on shared cores, more than one wait for each other",
    )
    parser.add_argument("--plot", type=Path, help="a PNG of the speeds")
    parser.add_argument("--vllm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.vllm:
        return in_vllm(options.vllm, options.dtype)
    from lib.generation import vllm_generator
    from lib.models import locate

    where = locate.path(locate.locate(options.model)[0])
    candidates, absent, tokenizer = ours(where, options.dtype, options.threads)
    sizes = sorted({b for b in (1, 8) if b < options.prompts} | {options.prompts})
    pools = {length: prompts(tokenizer, length, options.prompts) for length in options.lengths}
    server = None
    try:
        if vllm_generator.installed():
            command = [sys.executable, __file__, "--vllm", where, "--dtype", options.dtype, "--threads", str(options.threads)]  # fmt: skip
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            candidates["vLLM"] = lambda asked, tokens: ask(server, asked, tokens)
        else:
            absent["vLLM"] = "not installed: make vllm"
        speeds, equal = measure(candidates, pools, sizes, options)
    finally:
        if server:
            server.kill()
    return show(speeds, equal, absent, options, sizes)


def prompts(tokenizer, length: int, count: int) -> list[list[int]]:
    """Returns pages of Python's manual, cut to `length` tokens; only those whose text is tokenised into the same tokens again."""
    from pydoc_data.topics import topics

    found = []
    for page in topics.values():
        ids = tokenizer(" ".join(page.split("\n\n", 1)[-1].split()), add_special_tokens=False)["input_ids"][:length]
        if len(ids) == length and tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids:
            found.append(ids)
    if len(found) < count:
        raise SystemExit(f"--prompts: there are {len(found)} texts of {length} tokens, not {count}.")
    return found[:count]


def ours(where: str, dtype: str, threads: int) -> tuple[dict[str, Decode], dict[str, str], object]:
    """Returns the candidates that run in this process, sharing one copy of the weights; why others are left out; the tokenizer."""
    import torch
    from transformers.utils import is_flash_attn_2_available, logging

    from lib.generation.sampling import Sampling
    from lib.generation.transformers_generator import TransformersGenerator
    from lib.models import cpu_attention

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = TransformersGenerator(where, dtype, device)
    model, generator.ends = generator.model, set()
    model.generation_config.eos_token_id = None  # no answer ends early
    decode = generator.encoder.tokenizer.decode

    def naive(asked, tokens):
        model.set_attn_implementation("sdpa")
        written = []
        for ids in asked:
            ids_1T = torch.tensor([ids], device=device)
            for _ in range(tokens):
                ids_1T = torch.cat([ids_1T, model(ids_1T).logits[:, -1].argmax(-1, keepdim=True)], 1)
            written.append(ids_1T[0, len(ids) :].tolist())
        return written

    def generate(implementation: str, **how) -> Decode:
        def run(asked, tokens):
            model.set_attn_implementation(implementation)
            ids_BT = torch.tensor(asked, device=device)
            how_long = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": generator.encoder.pad}
            out_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **how_long, **how)
            return out_BT[:, ids_BT.shape[1] :].tolist()

        return run

    def transformers_generator(asked, tokens):
        model.set_attn_implementation(cpu_attention.NAME)
        generator.batch_rows = len(asked)
        answers = generator.generate([decode(ids) for ids in asked], Sampling(max_new_tokens=tokens))
        return [list(a[0].tokens) for a in answers]

    def inference(run: Decode) -> Decode:
        return torch.inference_mode()(run)

    found = {
        NAIVE: inference(naive),
        "generate, no KV cache": generate("sdpa", use_cache=False),
        "generate, KV cache, eager": generate("eager"),
        REFERENCE: generate("sdpa"),
        "generate, KV cache, ours": generate(cpu_attention.NAME),
        "generate, static cache, sdpa": generate("sdpa", cache_implementation="static"),
        "TransformersGenerator": transformers_generator,
    }
    flash, absent = "generate, KV cache, flash", {}
    if device == "cpu":
        absent[flash] = "not tried: no GPU"
    elif dtype == "float32":
        absent[flash] = "not tried: flash wants --dtype bfloat16"
    elif not is_flash_attn_2_available():
        absent[flash] = "not tried: flash-attn is not installed"
    else:
        found[flash] = generate("flash_attention_2")
    return found, absent, generator.encoder.tokenizer


def in_vllm(where: str, dtype: str) -> int:
    """Runs vLLM in its own process: reads prompts and a number of tokens per line of stdin, and prints a line of answers."""
    import torch

    from lib.generation.vllm_generator import VllmGenerator

    generator = VllmGenerator(where, dtype, "cuda" if torch.cuda.is_available() else "cpu")
    from vllm import SamplingParams

    for line in sys.stdin:
        request = json.loads(line)
        generator.llm.reset_prefix_cache()
        one = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True)
        outputs = generator._run(request["prompts"], [one] * len(request["prompts"]))
        print("RESULT", json.dumps([list(o.outputs[0].token_ids) for o in outputs]), flush=True)
    return 0


def ask(server: subprocess.Popen, asked: list[list[int]], tokens: int) -> list[list[int]]:
    print(json.dumps({"prompts": asked, "tokens": tokens}), file=server.stdin, flush=True)
    for line in server.stdout:
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"vLLM's process ended with exit code {server.wait()}; its output is above.")


def measure(candidates: dict[str, Decode], pools: dict[int, list[list[int]]], sizes: list[int], options):
    """Returns ({(candidate, length, batch): tokens per second in each turn}, {candidate: [equal answers, answers]})."""
    speeds: dict[tuple[str, int, int], list[float]] = {}
    equal = {name: [0, 0] for name in candidates}
    truth = {n: candidates[REFERENCE](pool, options.tokens) for n, pool in pools.items()}
    for decode in candidates.values():  # warm-up: one-time work of the first call
        for pool in pools.values():
            decode(pool[:2], 2)
    for turn in range(options.repeats):
        for length, pool in pools.items():
            for size in sizes:
                for name, decode in candidates.items():
                    if (name == NAIVE and size > 1) or ("no KV" in name and (size > 8 or size * length > 256)):
                        continue  # batching makes these no faster, so it would only multiply the time
                    at = [(turn * size + i) % len(pool) for i in range(size)]
                    began = time.perf_counter()
                    written = decode([pool[i] for i in at], options.tokens)
                    seconds = time.perf_counter() - began
                    speeds.setdefault((name, length, size), []).append(size * options.tokens / seconds)
                    equal[name][0] += sum(w == truth[length][i] for w, i in zip(written, at, strict=True))
                    equal[name][1] += size
                    print(f"turn {turn + 1}, {length} tokens, batch {size}: {name} {seconds:.1f} s", file=sys.stderr)
    return speeds, equal


def show(speeds: dict, equal: dict, absent: dict[str, str], options, sizes: list[int]) -> int:
    from rich.console import Console
    from rich.table import Table

    columns = [(length, size) for length in options.lengths for size in sizes]
    head = ["tokens/s (× naive)", *(f"{length} tokens, batch {size}" for length, size in columns), "answers equal"]
    rows = []
    for name, (same, all_) in equal.items():
        cells = []
        for length, size in columns:
            mine, base = speeds.get((name, length, size)), speeds[NAIVE, length, 1]
            ratio = mine and statistics.median(x / y for x, y in zip(mine, base, strict=True))
            cells.append(f"{statistics.median(mine):.3g} ({ratio:.2g}×)" if mine else "–")
        rows.append([name, *cells, f"{same} of {all_}"])
    rows += [[name, why, *[""] * len(columns)] for name, why in absent.items()]
    table = Table(
        title=f"{options.model}, {options.dtype}, {options.threads} threads, median of {options.repeats} turns"
    )
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=170).print(table)
    print("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))
    if options.plot:
        plot(speeds, options, sizes)
    return int(options.dtype == "float32" and any(same < all_ for same, all_ in equal.values()))


def plot(speeds: dict, options, sizes: list[int]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(3.4 * len(options.lengths) + 2.4, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(options.lengths), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for name, _, _ in speeds))
    for ax, length in zip(axes, options.lengths, strict=True):
        for i, name in enumerate(names):
            points = [(b, statistics.median(speeds[name, length, b])) for b in sizes if (name, length, b) in speeds]
            ax.plot(*zip(*points, strict=True), "osvD^<P*X"[i % 9] + "-", label=name, linewidth=1.3, markersize=5)
        ax.set(xscale="log", yscale="log", title=f"prompts of {length} tokens", xlabel="prompts in a batch")
        ax.set_xticks(sizes, [str(b) for b in sizes])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    low, high = axes[0].get_ylim()
    axes[0].set_yticks([y for y in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low <= y <= high])
    axes[0].yaxis.set_major_formatter(ScalarFormatter())
    axes[0].set_ylabel("new tokens per second")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(options.plot)


if __name__ == "__main__":
    sys.exit(main())
