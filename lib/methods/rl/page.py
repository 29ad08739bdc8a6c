"""reports/rl.html of a run that learns from rewards: its warnings first, then every curve by step, on a page that loads no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.config.job import Job
from lib.evals.report import plots
from lib.evals.report.formatting import number
from lib.evals.report.schema import Curve
from lib.methods.rl import rewards, warnings
from lib.methods.rl.warnings import Finding
from lib.methods.rl.windows import SHORTEST
from lib.run import Run
from lib.runtime import provenance

FILE = "reports/rl.html"
LOOK = Path(plots.__file__).parent
"""Where style.css.j2 is, the look of every report page."""

PANELS = (
    ("Entropy", "nats a token", (("entropy", "entropy"),)),
    ("KL to the reference", "nats a token", (("kl", "KL"),)),
    ("Length", "tokens an answer", (("completions/mean_length", "length"), ("eval_tokens", "held-out, greedy"))),
    ("Cut off", "share of answers that reach their longest length", (("completions/clipped_ratio", "cut off"),)),
    ("Distinct-2", "different pairs of tokens ÷ all, over a step’s answers", (("distinct_2", "distinct-2"),)),
    ("Groups without spread", "share of prompts whose answers all have the same reward", (("frac_reward_zero_std", "without spread"),)),
    ("Clip fraction", "share of tokens whose update is cut off",
     (("clip_ratio/region_mean", "clipped"), ("clip_ratio", "clipped"), ("cispo_clip_ratio", "clipped"))),
    ("Explained variance", "share of the returns’ variance that the value model foresees", (("explained_variance", "explained"),)),
    ("Missing rewards", "share of answers left out for want of a reward", (("rewards/missing", "missing"),)),
)  # fmt: skip
"""(title, unit, (metric, its name)) of each figure; those without values are left out."""


def write(run: Run, job: Job) -> list[Finding]:
    """Writes the page, records the warnings in provenance.json, and returns them."""
    rows, limit = run.metrics(), kl_limit(job.train)
    found = warnings.find(rows, measures(job), limit)
    run.write_text(FILE, html(run.path, job, rows, found))
    provenance.record(run, {"rl_warnings": [f.to_dict() for f in found]})
    return found


def measures(job: Job) -> list[str]:
    """Returns the rewards of weight 0 whose higher values are better: what isn't trained on, and so can show that a reward is hacked."""
    return [name for name, weight in (job.rewards or {}).items() if not weight and rewards.better(name) == "higher"]


def kl_limit(train: Mapping) -> float | None:
    """Returns train.kl_limit, or twice PPO's kl_target, around which β holds the KL; None without either."""
    if (given := train.get("kl_limit")) is not None:
        return float(given)
    return None if train.get("kl_target") is None else 2.0 * float(train["kl_target"])


def unseen(job: Job, rows: Sequence[Mapping]) -> list[str]:
    """Returns a sentence for each warning that this run can't get, with what it lacks."""
    out = []
    if warnings.too_few(rows):
        out.append(f"Fewer than {2 * SHORTEST} steps are logged, too few to compare its beginning with its end.")
    if not measures(job):
        out.append("Hacking: nothing but the rewards is measured. A reward of weight 0 is, such as --rewards.demo 0.")
    elif len(warnings.points(rows, f"eval_rewards/{measures(job)[0]}")) < 2:
        out.append("Hacking: held-out answers were measured only once. Set train.eval_strategy and train.eval_steps.")
    if not warnings.divergence(rows):
        out.append("KL: it isn't measured without train.beta.")
    elif kl_limit(job.train) is None:
        out.append("KL: it has no limit. Set train.kl_limit, in nats an answer.")
    return out


def html(path: str, job: Job, rows: Sequence[Mapping], found: Sequence[Finding]) -> str:
    """Returns the page. rows: as Run.metrics() returns them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, LOOK]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    of_rewards, others = _panels(rows, job)
    return environment.get_template("page.html.j2").render(
        run=path, job=job, found=found, unseen=unseen(job, rows), steps=max((r["step"] for r in rows), default=0),
        parts=[("Rewards", "rewards", [p | {"svg": Markup(p["svg"])} for p in of_rewards]),
               ("Answers and updates", "curves", [p | {"svg": Markup(p["svg"])} for p in others])],
    )  # fmt: skip


def _panels(rows: Sequence[Mapping], job: Job) -> tuple[list[dict], list[dict]]:
    of_rewards = [("Reward", "weighted sum", (("reward", "reward"), ("eval_reward", "held-out, greedy")))]
    for name, weight in (job.rewards or {}).items():
        unit = f"weight {weight:g}" if weight else "measured only"
        of_rewards.append((name, unit, ((f"rewards/{name}/mean", name), (f"eval_rewards/{name}", "held-out, greedy"))))
    first = [_panel(title, unit, _curves(rows, keys)) for title, unit, keys in of_rewards]
    rest = [_panel(title, unit, _curves(rows, keys)) for title, unit, keys in PANELS]
    kl = warnings.divergence(rows)
    if kl:
        at = next(i for i, p in enumerate(PANELS) if p[0].startswith("KL")) + 1
        rest.insert(at, _panel("KL to the reference", "nats an answer", [_curve("KL", kl)]))
    return [p for p in first if p], [p for p in rest if p]


def _curves(rows: Sequence[Mapping], keys: Sequence[tuple[str, str]]) -> list[Curve]:
    there = [(name, warnings.points(rows, key)) for key, name in keys]
    return [_curve(name, values) for name, values in there if values]


def _curve(name: str, values: warnings.Points) -> Curve:
    return Curve(name, [step for step, _ in values], [value for _, value in values])


def _panel(title: str, unit: str, lines: list[Curve]) -> dict[str, str] | None:
    if not lines:
        return None
    ends = "; ".join(f"{c.name} {number(c.values[0])} → {number(c.values[-1])}" for c in lines)
    return {"title": title, "note": f"{unit}: {ends}", "svg": plots.curves(lines, 1)}
