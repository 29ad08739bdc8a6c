"""Confirms a search: are the best trials better than the job it started from, with other seeds and on rows that had no part in the choice?

The best of many trials looks better than it is, since the choice favours those that were lucky. So the finalists and the start are trained
again with other seeds and compared on fresh rows, and only that comparison makes a claim.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.evals.statistics import two_way
from lib.evals.statistics.intervals import CONFIDENCE, Estimate
from lib.run import Run
from tune import evaluation, metrics
from tune.journal import Trial
from tune.plan import directory
from tune.ranking import finished
from tune.settings import Settings


@dataclass(frozen=True)
class Confirmed:
    """One finalist against the start."""

    trial: int
    start: float
    """Mean of the metric over the seeds, on fresh rows."""
    value: float
    gain: Estimate
    """How much better the finalist is than the start, in the metric's units; negative: worse. Its interval is widened for the number of
    finalists (Bonferroni), so that one search claims a wrong gain in at most 5% of cases."""
    in_search: float
    """The same difference between the two trials of the search, one seed on the rows of the choice."""

    @property
    def better(self) -> bool | None:
        """None: the two can't be told apart."""
        if self.gain.low is None or self.gain.high is None or self.gain.low <= 0 <= self.gain.high:
            return None
        return self.gain.low > 0


def finalists(trials: list[Trial], settings: Settings, mode: str) -> list[Trial]:
    """Returns the best finished trials of the search, at most settings.finalists."""
    return finished(trials, settings.metric, mode)[: settings.finalists]


def confirmed(
    trials: list[Trial], settings: Settings, mode: str, batches: dict[int, list[list[float]]]
) -> list[Confirmed]:
    """Returns each finalist against the start, best first, over the seeds with which both have finished.

    batches: {number of a trial: [loss sum, tokens] of each held-out batch, or [score, 1] of each example of a task}, for the trials of the
    confirmation; without them, rows count as fixed.
    """
    start = next((t for t in trials if t.role == "start"), None)
    of: dict[int | None, dict[int | None, Trial]] = {}
    for t in trials:
        if t.role == "confirm" and t.status == "finished" and t.last(settings.metric) is not None:
            of.setdefault(t.of, {})[t.seed] = t
    best = [
        t
        for t in finalists(trials, settings, mode)
        if start and set(of.get(t.number, {})) & set(of.get(start.number, {}))
    ]
    out = []
    for t in best:
        assert start
        mine, base = of[t.number], of[start.number]
        seeds = sorted(s for s in mine if s in base and s is not None)
        sign = -1.0 if mode == "min" else 1.0
        a, b, weights = _sums([base[s] for s in seeds], [mine[s] for s in seeds], settings.metric, batches)
        gain = two_way.difference(a, b, weights, 1 - (1 - CONFIDENCE) / len(best))
        low, high = (gain.low, gain.high) if mode == "max" else (gain.high, gain.low)
        signed = Estimate(sign * gain.value, low and sign * low, high and sign * high, gain.n, gain.method)
        means = [sum(side[s].last(settings.metric) or 0.0 for s in seeds) / len(seeds) for side in (base, mine)]
        chosen = sign * ((t.last(settings.metric) or 0.0) - (start.last(settings.metric) or 0.0))
        out.append(Confirmed(t.number, means[0], means[1], signed, chosen))
    return sorted(out, key=lambda c: -c.gain.value)


def _sums(
    base: list[Trial], mine: list[Trial], metric: str, batches: dict[int, list[list[float]]]
) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Returns (the start's sums [seeds][blocks], the finalist's, weights [blocks])."""
    found = [batches.get(t.number) or [] for t in (*base, *mine)]
    weights = [w for _, w in found[0]]
    if len(weights) > 1 and all([w for _, w in rows] == weights for rows in found):
        sums = [[total for total, _ in rows] for rows in found]
        return sums[: len(base)], sums[len(base) :], weights
    return [[t.last(metric) or 0.0] for t in base], [[t.last(metric) or 0.0] for t in mine], [1.0]


def batches(settings: Settings, trials: list[Trial]) -> dict[int, list[list[float]]]:
    """Reads what the finished confirmations have measured, example by example. Returns {} for a metric of which there is no such record."""
    name = evaluation.FILE if metrics.task_of(settings.metric) else "heldout.json"
    found, ids = {}, set[tuple[str, ...]]()
    for t in trials:
        run = Run(directory(settings.run, t.number))
        if t.role == "confirm" and t.status == "finished" and run.fs.exists(run.at(name)):
            kept = run.read_json(name, "Delete it to compare without it.")
            found[t.number] = kept["batches"]
            ids.add(tuple(kept.get("ids", ())))
            if kept.get("kind") == "perplexity":  # it is no ratio of sums
                return {}
    summed = name == evaluation.FILE or settings.metric == "eval_loss"
    return found if summed and len(ids) == 1 else {}
