"""A search without training: 20 trials that ASHA stops, as tune/report.py writes them into report.json."""

import json
import math
from dataclasses import asdict

import numpy as np

from tune import confirm, space
from tune.importance import importances
from tune.journal import Trial
from tune.ranking import best
from tune.settings import Settings

SPACE = {
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.adapter": {"choice": ["none", "lora", "<b>dora</b>"]},
    "model.peft.r": {"choice": [4, 8, 16], "when": {"model.adapter": ["lora", "<b>dora</b>"]}},
    "train.weight_decay": {"uniform": [0.0, 0.1]},
}
EVERY, STEPS = 10, 90


def settings(**changed) -> Settings:
    return Settings(**({"run": "/runs/a search", "space": SPACE, "scheduler": "asha", "usd_per_hour": 1.2} | changed))


def trials(count: int = 20, seed: int = 0, stops: bool = True) -> list[Trial]:
    """A start and `count` trials, whose loss depends on the learning rate alone: best at 1e-3. The worse two thirds at each rung (steps 10 and
    30) are stopped; one trial fails and one diverges. Three confirmations of the start and the two best."""
    rng = np.random.default_rng(seed)
    drawn: list[dict] = [{}]
    for _ in range(count):
        adapter = str(rng.choice(["none", "lora", "<b>dora</b>"]))
        rank = {} if adapter == "none" else {"model.peft.r": int(rng.choice([4, 8, 16]))}
        rate, decay = float(10 ** rng.uniform(-4, -2)), float(rng.uniform(0, 0.1))
        drawn.append({"train.learning_rate": rate, "model.adapter": adapter, **rank, "train.weight_decay": decay})
    losses = [2.0 + 0.4 * (math.log10(d.get("train.learning_rate", 2e-4)) + 3) ** 2 for d in drawn]
    losses = [x + float(rng.normal(0, 0.02)) for x in losses]
    order = sorted(range(1, count + 1), key=lambda n: losses[n])
    found = []
    for n, (d, loss) in enumerate(zip(drawn, losses, strict=True)):
        rank = order.index(n) if n else 0
        end = STEPS if not stops or rank <= count // 9 else 30 if rank <= count // 3 else 10
        found.append(_trial(Trial(n, d, "search" if n else "start"), loss, end, end < STEPS))
    if stops:
        found[4].status, found[4].why, found[4].reports = (
            "failed",
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            [],
        )
        found[7].reports[-1]["eval_loss"] = math.nan
    finalists = [t for t in (found[n] for n in order) if t.status == "finished"][:2]
    for n in (1, 2, 3):
        for t in (found[0], *finalists):
            again = Trial(len(found), t.settings, "confirm", t.number, n)
            found.append(_trial(again, losses[t.number] + float(rng.normal(0, 0.02)), STEPS, False))
    return found


def _trial(t: Trial, loss: float, end: int, stopped: bool) -> Trial:
    for step in range(EVERY, end + 1, EVERY):
        value = loss + 0.8 * math.exp(-step / 20)
        t.reports.append({"step": step, "eval_loss": value, "tokens": 1024 * step, "seconds": 0.5 * step + t.number})
    t.status = "stopped" if stopped else "finished"
    t.why, t.ended_after = f"asha at step {end}" if stopped else "", t.seconds
    return t


def report(found: list[Trial], s: Settings, mode: str = "min") -> dict:
    """report.json's content, as read from the file."""
    done = confirm.confirmed(found, s, mode, {})
    keys, about = importances(found, space.read(s.space)[0], s, mode, resamples=40)
    good, _ = importances(found, space.read(s.space)[0], s, mode, resamples=40, good=True)
    chosen = best(found, s.metric, mode)
    content = {
        "search": asdict(s), "mode": mode, "ended": "all 20 trials have run", "command": "python -m tune --config x.yaml",
        "importance": {"keys": [asdict(k) for k in keys], "good": [asdict(k) for k in good], "about": about}, "best": chosen.number if chosen else None,
        "verdict": ["Trial 1 is better than the job that the search started from.", "  In the search the gain was +0.1."],
        "confirmed": [asdict(c) | {"better": c.better} for c in done],
        "trials": [
            asdict(t) | {"value": t.last(s.metric), "tokens": t.tokens, "seconds": t.seconds, "run": f"{s.run}/trials/{t.number:04d}"}
            for t in found
        ],
    }  # fmt: skip
    return json.loads(json.dumps(content))
