"""A draft model for speculative decoding: a small student of its target, with a certificate of its correctness and speed-up.

The certificate (reports/certificate.json and .md) reports, measured on held-out prompts:
    identical     in float32, how many greedy and sampled answers with the draft equal those without it, token for token
    acceptance    share of guessed tokens at each position that the target accepted
    speed         tokens/s relative to the target alone, by number of tokens guessed, with 1 and 8 answers at a time
    draft_tokens  the number of guessed tokens with the best speed at 1 answer, which serving uses
On hardware where memory bandwidth limits the speed (a GPU with few answers), the time of a pass is proportional to the model's
weights. The speed-up there is computed from the acceptance, not measured: tokens per pass / (1 + k · c), with k guessed tokens and
c = weights of the draft / weights of the target (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, theorem 3.8).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lib.config.job import Job
from lib.methods.distillation.trainer import DistillConfig
from lib.run import Run
from lib.runtime.device import of_worker

COUNTS = (2, 4, 6, 8)
"""Numbers of tokens guessed at a time that are tried."""
TOGETHER = (1, 8)
"""Numbers of answers generated at a time that are tried."""


@dataclass
class DraftConfig(DistillConfig):
    certify_prompts: int = field(
        default=32,
        metadata={
            "help": "Number of held-out prompts on which answers with and without the draft are compared and timed."
        },
    )


def certify(run: Run, job: Job) -> bool:
    """Measures the draft in `run` against its target, train.teacher, unless the run has a certificate, and prints the certificate.

    Returns whether all answers are identical with and without the draft.
    """
    from lib.models import locate
    from lib.runtime import ray_session
    from lib.runtime.isolated_task import apart

    if not run.fs.exists(run.at("reports/certificate.json")):
        print("Certificate: measuring the target with and without its draft …", flush=True)
        asked = job.train.get("certify_prompts", DraftConfig.certify_prompts)
        with ray_session.connected():
            found = apart(run, measure, locate.locate(job.train["teacher"])[0], run.path, job, asked)
        run.write_text("reports/certificate.md", markdown(found))
        run.write_json("reports/certificate.json", found)
    found = run.read_json("reports/certificate.json", "Delete it to measure the draft again.")
    print(markdown(found), flush=True)
    same = found["identical"]
    good = all(same[how] == same["of"] for how in ("greedy", "drawn"))
    if good:
        print(f"Next:\n  serve run serve.app:app run={job.train['teacher']} draft={run.path}")
        print(f"  python jobs/eval.py --runs.target {job.train['teacher']} --runs.draft {run.path} --tasks demo --decoding greedy,draft=draft,draft_tokens={found['draft_tokens']}")  # fmt: skip
    else:
        print(
            "No certificate: the draft changed an answer. Rounding can cause that only if two tokens are equally likely."
        )
    return good


def measure(target: str, draft: str, job: Job, count: int) -> dict:
    """Returns the certificate. target, draft: models as located by lib.models.locate.locate, or runs. count: number of prompts."""
    import torch

    from lib import data
    from lib.generation.sampling import Sampling
    from lib.generation.speculative import Lookup
    from lib.generation.transformers_generator import TransformersGenerator
    from lib.models import locate
    from lib.runtime import hardware

    torch.set_num_threads(job.scale.cpus_per_worker)
    device = of_worker()
    tokens = job.train.get("answer_tokens", DraftConfig.answer_tokens)
    prompts = data.prompts(data.load(job.data, ("chat",), training=False).heldout, count)
    folders = [locate.path(target), locate.path(draft)]
    exact, small = (TransformersGenerator(f, "float32", device) for f in folders)
    same = {"of": len(prompts), "dtype": "float32"}
    for how, temperature in (("greedy", 0.0), ("drawn", 1.0)):
        plain = Sampling(temperature=temperature, max_new_tokens=tokens)
        drafted = Sampling(temperature=temperature, max_new_tokens=tokens, draft="draft")
        pairs = zip(exact.generate(prompts, plain), exact.generate(prompts, drafted, other=small), strict=True)
        same[how] = sum(a == b for a, b in pairs)
    dtype = hardware.dtype("auto", device)
    big, small = (TransformersGenerator(f, dtype, device) for f in folders)
    weights = [sum(p.numel() for p in g.model.parameters()) for g in (big, small)]
    speed = []
    for rows in TOGETHER:
        big.batch_rows = rows
        asked = prompts[: max(8, 2 * rows)]
        big.generate(asked[:rows], Sampling(max_new_tokens=4))  # warm-up: one-time set-up is not timed
        alone = _timed(big, asked, Sampling(max_new_tokens=tokens), None)
        for name, drafter in (("draft", small.drafter), ("lookup", Lookup)):
            for k in COUNTS:
                used = drafter()
                sampling = Sampling(max_new_tokens=tokens, draft=name, draft_tokens=k)
                with_it = _timed(big, asked, sampling, used)
                # The target alone is timed before and after, so that other load on the machine affects both sides.
                again = _timed(big, asked, Sampling(max_new_tokens=tokens), None)
                rate = (alone[0] + again[0]) / 2
                alone, passes = again, used.written / max(1, used.rounds)
                line = {"by": name, "together": rows, "draft_tokens": k, "alone": rate, "with": with_it[0]}
                line |= {"ratio": with_it[0] / rate, "tokens_per_pass": passes}
                line["acceptance"] = [r / p for r, p in zip(used.right, used.proposed, strict=True)]
                line["identical"] = sum(a == b for a, b in zip(with_it[1], again[1], strict=True)) / len(asked)
                cost = weights[1] / weights[0] if name == "draft" else 0.0
                line["computed"] = passes / (1 + k * cost)
                speed.append(line)
    best = max((s for s in speed if s["together"] == 1 and s["by"] == "draft"), key=lambda s: s["ratio"])
    return {
        "target": target, "draft": draft, "weights": weights, "dtype": dtype, "device": device, "identical": same,
        "speed": speed, "draft_tokens": best["draft_tokens"],
    }  # fmt: skip


def _timed(generator, prompts: list, sampling, drafter) -> tuple[float, list]:
    """Returns (tokens per second, answers)."""
    began = time.perf_counter()
    answers = generator.generate(prompts, sampling, drafter=drafter)
    return sum(len(a[0].tokens) for a in answers) / (time.perf_counter() - began), answers


def markdown(found: dict) -> str:
    """Renders the certificate."""
    same, weights = found["identical"], found["weights"]
    out = [
        f"# Draft {found['draft']} for {found['target']}",
        "",
        f"The draft has {weights[1] / 1e6:.0f}M weights, the target {weights[0] / 1e6:.0f}M. In float32, {same['greedy']} of {same['of']} "
        f"greedy answers and {same['drawn']} of {same['of']} sampled ones are identical with and without the draft. Speeds: {found['dtype']} on "
        f"{found['device']}; best with {found['draft_tokens']} tokens at a time.",
        "",
        "| drafter | answers at a time | tokens guessed | tokens/s alone → with | speed | tokens per pass | acceptance by position | identical | computed* |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for s in found["speed"]:
        right = " ".join(f"{a:.0%}" for a in s["acceptance"]) or "–"
        out.append(
            f"| {s['by']} | {s['together']} | {s['draft_tokens']} | {s['alone']:.0f} → {s['with']:.0f} | **{s['ratio']:.2f}×** | "
            f"{s['tokens_per_pass']:.2f} | {right} | {s['identical']:.0%} | {s['computed']:.2f}× |"
        )
    return "\n".join(
        [
            *out,
            "",
            "\\* not measured: speed if the time of a pass is proportional to the weights, as on a GPU with few answers.",
            "",
        ]
    )
