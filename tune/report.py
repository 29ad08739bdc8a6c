"""What a search found: the table and the verdict, report.json, report.html, and best.yaml, the job of the best trial."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

from lib.run import Run
from lib.runtime.console import show
from tune import confirm, page
from tune.confirm import Confirmed
from tune.importance import importances
from tune.journal import Journal, Trial
from tune.plan import Plan, directory
from tune.ranking import best, ranked
from tune.space import short

SHOWN = 10
"""Number of trials in the table on the terminal."""


def write(planned: Plan, journal: Journal, over: str, command: str) -> bool:
    """Writes report.json, report.html and best.yaml, and prints the result. Returns False if no trial of the search finished.

    over: why the search ended. command: the one that goes on with it.
    """
    s, run, trials = planned.settings, Run(planned.settings.run), list(journal.trials.values())
    found = confirm.confirmed(trials, s, planned.mode, confirm.batches(s, trials))
    chosen = journal.trials[found[0].trial] if found else best(trials, s.metric, planned.mode)
    said = verdict(planned, trials, found)
    keys, about = importances(trials, planned.space, s, planned.mode)
    good, _ = importances(trials, planned.space, s, planned.mode, good=True)
    content = {
        "search": asdict(s),
        "mode": planned.mode,
        "ended": over,
        "command": command,
        "importance": {"keys": [asdict(k) for k in keys], "good": [asdict(k) for k in good], "about": about},
        "best": chosen.number if chosen else None,
        "verdict": said,
        "confirmed": [asdict(c) | {"better": c.better} for c in found],
        "trials": [
            asdict(t)
            | {
                "value": t.last(s.metric),
                "tokens": t.tokens,
                "seconds": t.seconds,
                "run": directory(run.path, t.number),
            }
            for t in trials
        ],
    }
    written = json.dumps(content, indent=1, default=str) + "\n"  # keys in the order of the YAML, which `when` needs
    run.write_text("report.json", written)
    run.write_text("report.html", page.html(json.loads(written)))
    rows = [
        (
            _name(t),
            f"{s.metric} {t.last(s.metric):.4f} at step {t.step}, {t.status}"
            + (f": {short(t.settings)}" if t.settings else ""),
        )
        for t in ranked([t for t in trials if t.role != "confirm"], s.metric, planned.mode)[:SHOWN]
    ]
    show([*rows, *_totals(planned, trials), ("ended", over)], f"search over {s.stage}: {run.path}")
    for line in said:
        print(line)
    at = run.at("report.html")
    seen = f"The page to download and open: {at}" if run.remote else f"xdg-open {shlex.quote(at)}"
    if not chosen:
        print(
            f"No trial finished, so there is no best one. Each trial's logs are in {run.path}/trials/*/logs.\nNext:\n  {seen}"
        )
        return False
    comment = "".join(f"# {line}\n" for line in [f"Trial {chosen.number} of the search in {run.path}.", *said])
    run.write_text("best.yaml", comment + planned.yaml(chosen, f"{s.run}/best"))
    print(f"Next:\n  python jobs/{s.program}.py --config {shlex.quote(run.at('best.yaml'))}\n  {seen}")
    return True


def verdict(planned: Plan, trials: list[Trial], found: list[Confirmed]) -> list[str]:
    """Returns in words what was confirmed, a line each."""
    s, out = planned.settings, []
    for c in found:
        g = c.gain
        if g.low is None or g.high is None:
            out.append(f"Trial {c.trial}: one seed says nothing of how much seeds matter. Set confirm to 2 or more.")
            continue
        numbers = f"{s.metric} {c.start:.4f} → {c.value:.4f}, {g.value:+.4f} [{g.low:+.4f}, {g.high:+.4f}] better ({g.method})"
        how = {True: "is better than", False: "is worse than", None: "can't be told apart from"}[c.better]
        out.append(f"Trial {c.trial} {how} the job that the search started from: {numbers}.")
        out.append(
            f"  In the search the gain was {c.in_search:+.4f}; {c.in_search - g.value:+.4f} of it were selection and luck."
        )
    if found and not any(c.better for c in found):
        out.append("Nothing in this space was shown to be better than what you had.")
    if not found and s.confirm and best(trials, s.metric, planned.mode):
        out.append("Nothing was confirmed: the budget ended before it. Raise it and rerun the command.")
    if not s.confirm:
        out.append("Nothing was confirmed (confirm: 0), so the best trial may only have been lucky.")
    return out


def _name(t: Trial) -> str:
    return f"trial {t.number}" if t.role == "search" else "start"


def _totals(planned: Plan, trials: list[Trial]) -> list[tuple[str, str]]:
    counts = {
        status: sum(t.status == status for t in trials) for status in ("finished", "stopped", "failed", "running")
    }
    named = {"running": "cut off by the budget"}
    out = [("trials", ", ".join(f"{n} {named.get(status, status)}" for status, n in counts.items() if n))]
    seconds = sum(t.seconds for t in trials)
    cost = f", ${planned.settings.usd(seconds):.2f}" if planned.settings.usd_per_hour else ""
    return [*out, ("spent", f"{sum(t.tokens for t in trials):,} tokens, {seconds / 60:.1f} trial-minutes{cost}")]
