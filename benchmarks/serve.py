"""Compares our deployment with vLLM's own server: the same model, threads and load, in one run.

    .venv-vllm/bin/python benchmarks/serve.py [--run HuggingFaceTB/SmolLM2-135M-Instruct] [--requests 96] [--tokens 48]
    .venv-vllm/bin/python benchmarks/serve.py --engine transformers --dtype float32 --clients 1 16

Ours is `serve run serve.app:app` (Ray Serve's proxy, our guard, vLLM's application or transformers' in a replica); theirs is `python -m
vllm.entrypoints.openai.api_server`. They run in the order ours, theirs, theirs, ours, each alone on the machine, so that drift
cancels. Each gets streaming chat requests of a fixed number of tokens over loopback: first closed loops (--clients, each of which sends
its next request as soon as the last one is answered), then Poisson arrivals at 70% of the requests per second that the first of the
four turns reached in the last closed loop. No two prompts share a prefix, so the prefix cache gains nothing. The clients run on the
same cores, in this process. Both servers get the environment of our replicas (lib/runtime/hardware.py, lib/generation/vllm_generator.py); with
--as-it-comes, vLLM's server uses its own default threads and allocator.

Tokens/s is the total of a side's two turns divided by their seconds, shown beside the ratio of each turn; percentiles are over the
requests of both turns. Cold start is the time from the command to the first answered request, mean of two. Memory is the PSS (shared
pages counted once) of the whole process tree, including Ray's own processes, at its highest after any load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SIDES = ("ours", "theirs", "theirs", "ours")
POISSON = "Poisson, 70%"


@dataclass
class Reply:
    """Seconds from the request to its first token, mean seconds between tokens, and the time when it ended."""

    first: float
    between: float
    tokens: int


@dataclass
class Turn:
    cold: float
    pss: int
    replies: dict[str, list[Reply]]
    seconds: dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="run, folder or name")
    parser.add_argument(
        "--requests", type=int, default=96, help="requests per load; a single client sends a quarter of them"
    )
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm", help="engine of our deployment")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 32], help="concurrent clients of each closed loop"
    )
    parser.add_argument("--as-it-comes", action="store_true", help="run vLLM's own server with its default environment")
    options = parser.parse_args()
    from lib.generation import vllm_generator
    from lib.runtime import hardware

    if not vllm_generator.installed():
        print('vLLM is not installed here: make vllm, or with a GPU pip install -e ".[gpu]".', file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the server would outlive this process
    vllm_generator.environment("WARNING", "cuda" if hardware.local_gpus() else "cpu")
    turns: list[tuple[str, Turn]] = []
    rate = None
    for side in SIDES:
        turn = asyncio.run(measure(side, options, rate))
        turns.append((side, turn))
        rate = rate or 0.7 * options.requests / turn.seconds[loads(options)[-1]]
        print(f"{side}: cold {turn.cold:.1f} s, {turn.pss / 2**30:.2f} GiB, "
              + ", ".join(f"{k} {speed([turn], k):.0f} tokens/s" for k in loads(options)), file=sys.stderr)  # fmt: skip
    show(turns, rate, options)
    return 0


def loads(options) -> list[str]:
    """Returns the names of the closed loops."""
    return [f"{n} client{'s' if n > 1 else ''}" for n in options.clients]


def command(side: str, options, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the command that starts the server, and its environment."""
    import yaml

    from lib.config.job import Scale
    from lib.models import locate
    from lib.runtime import hardware

    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    gpu = hardware.local_gpus() > 0
    if side == "ours":
        args = {"run": options.run, "name": "it", "engine": options.engine, "dtype": options.dtype, "at_once": 128}
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump({
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [{"name": "it", "route_prefix": "/", "import_path": "serve.app:app", "args": args}],
        }))  # fmt: skip
        return [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local", str(config)], env
    where = locate.path(locate.locate(options.run)[0])
    argv = ["--model", where, "--served-model-name", "it", "--dtype", options.dtype, "--host", "127.0.0.1"]
    argv += ["--port", str(port)] + ([] if gpu else ["--enforce-eager"])
    env |= {} if options.as_it_comes else hardware.worker_env(Scale(), gpu)
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *argv], env


@contextmanager
def serving(side: str, options) -> Iterator[tuple[str, object, float]]:
    """Runs a server until the block ends; yields (address, its psutil.Process, cold start in seconds)."""
    import httpx
    import psutil

    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        argv, env = command(side, options, port, Path(folder))
        first = asked(0, 1, ends(options))
        url, log = f"http://127.0.0.1:{port}/v1/chat/completions", Path(folder) / "log"
        began = time.time()
        with log.open("w") as out:
            p = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        process = psutil.Process(p.pid)
        try:
            while True:
                if p.poll() is not None or time.time() - began > 300:
                    raise SystemExit(f"{side} did not start:\n{log.read_text()[-3000:]}")
                with suppress(httpx.TransportError):
                    if httpx.post(url, json=first, timeout=60).status_code == 200:
                        break
                time.sleep(0.2)
            yield url, process, time.time() - began
        finally:
            mine = process.children(recursive=True) if p.poll() is None else []
            p.terminate()
            with suppress(subprocess.TimeoutExpired):
                p.wait(30)
            for left in [*mine, *([process] if p.poll() is None else [])]:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            psutil.wait_procs(mine, 10)


def ends(options) -> list[int]:
    """Returns the ids of the tokens that would end an answer early."""
    from transformers import GenerationConfig

    from lib.models import locate

    found = GenerationConfig.from_pretrained(locate.path(locate.locate(options.run)[0])).eos_token_id
    return found if isinstance(found, list) else [found]


def asked(number: int, tokens: int, never: list[int]) -> dict:
    """Returns a request: some 100 tokens of Python's manual, made unique by the number.

    never: tokens that the answer must not contain (transformers' server has no ignore_eos).
    """
    from pydoc_data.topics import topics

    page = list(topics.values())[number % len(topics)].split("\n\n", 1)[-1]
    text = f"{number}: sum this up. {' '.join(page.split()[:60])}"
    return {
        "model": "it", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0,
        "logit_bias": dict.fromkeys(map(str, never), -100), "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def ask(http, url: str, body: dict) -> Reply:
    tokens = body["max_tokens"]
    began, first, last, counted = time.perf_counter(), 0.0, 0.0, 0
    async with http.stream("POST", url, json=body) as reply:
        if reply.status_code != 200:
            raise SystemExit(f"{reply.status_code}: {(await reply.aread()).decode()[:500]}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if any(c["delta"].get("content") for c in chunk["choices"]):
                last = time.perf_counter()
                first = first or last
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
    assert counted == tokens, f"{counted} tokens instead of {tokens}"
    return Reply(first - began, (last - first) / max(1, tokens - 1), counted)


async def closed(http, url: str, clients: int, bodies: list[dict]) -> list[Reply]:
    """Runs a closed loop: each client sends its next request once the last one is answered."""
    left = iter(bodies)

    async def client() -> list[Reply]:
        return [await ask(http, url, body) for body in left]

    return [reply for each in await asyncio.gather(*(client() for _ in range(clients))) for reply in each]


async def poisson(http, url: str, rate: float, bodies: list[dict]) -> list[Reply]:
    """Sends `rate` requests per second as a Poisson process, regardless of earlier answers; the arrival times are always the same."""
    dice, at, under_way = random.Random(0), time.perf_counter(), []
    for body in bodies:
        at += dice.expovariate(rate)
        await asyncio.sleep(at - time.perf_counter())
        under_way.append(asyncio.create_task(ask(http, url, body)))
    return await asyncio.gather(*under_way)


async def measure(side: str, options, rate: float | None) -> Turn:
    """Runs one turn. rate: Poisson arrivals per second; None: derived from this turn's last closed loop."""
    import httpx
    import psutil

    def pss() -> int:
        total = 0
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += each.memory_full_info().pss
        return total

    with serving(side, options) as (url, process, cold):
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        async with httpx.AsyncClient(timeout=600, limits=limits) as http:
            never = ends(options)
            await closed(http, url, 32, [asked(n, 4, never) for n in range(1, 33)])  # warm-up
            turn, at = Turn(cold, pss(), {}, {}), 100
            for load, clients in zip((*loads(options), POISSON), (*options.clients, None), strict=True):
                count = max(1, options.requests // 4) if clients == 1 else options.requests
                bodies, at = [asked(n, options.tokens, never) for n in range(at, at + count)], at + count
                began = time.perf_counter()
                if load == POISSON:
                    rate = rate or 0.7 * options.requests / turn.seconds[loads(options)[-1]]
                    turn.replies[load] = await poisson(http, url, rate, bodies)
                else:
                    turn.replies[load] = await closed(http, url, clients, bodies)
                turn.seconds[load] = time.perf_counter() - began
                turn.pss = max(turn.pss, pss())
    return turn


def speed(turns: list[Turn], load: str) -> float:
    """Returns tokens per second."""
    return sum(r.tokens for t in turns for r in t.replies[load]) / sum(t.seconds[load] for t in turns)


def show(turns: list[tuple[str, Turn]], rate: float, options) -> None:
    from rich.console import Console
    from rich.table import Table

    side = {name: [t for s, t in turns if s == name] for name in ("ours", "theirs")}
    head = ["", "tokens/s, ours : theirs", "ratio (each turn)"]
    head += [f"{p} {what}, ms" for what in ("first token", "next token") for p in ("p50", "p99")]
    rows = []
    for load in (*loads(options), POISSON):
        a, b = (speed(side[s], load) for s in ("ours", "theirs"))
        each = [speed([x], load) / speed([y], load) for x, y in zip(side["ours"], side["theirs"], strict=True)]
        row = [load, f"{a:.0f} : {b:.0f}", f"{a / b:.2f}× ({', '.join(f'{x:.2f}' for x in each)})"]
        for what in ("first", "between"):
            found = {s: [1000 * getattr(r, what) for t in side[s] for r in t.replies[load]] for s in side}
            cuts = {s: statistics.quantiles(x, n=100, method="inclusive") for s, x in found.items()}
            row += [f"{cuts['ours'][p]:.0f} : {cuts['theirs'][p]:.0f}" for p in (49, 98)]
        rows.append(row)
    rows[-1][1] = f"{rate:.1f} requests/s"
    rows[-1][2] = ""
    title = f"{options.run}, {options.engine}, {options.dtype}, {options.requests} requests of {options.tokens} tokens, two turns each"
    table = Table(title=title + (", theirs as it comes" if options.as_it_comes else ""))
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)
    print("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))
    cold = {s: statistics.mean(t.cold for t in x) for s, x in side.items()}
    pss = {s: max(t.pss for t in x) / 2**30 for s, x in side.items()}
    print(f"\ncold start, s: {cold['ours']:.1f} : {cold['theirs']:.1f} ({cold['ours'] - cold['theirs']:+.1f} s)")
    print(f"memory (PSS of the process tree), GiB: {pss['ours']:.2f} : {pss['theirs']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
