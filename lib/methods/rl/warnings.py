"""Warnings of a run that learns from rewards, from the rows of its metrics.jsonl alone.

Except for held-out scores, a rule compares the first tenth of the logged values with the last quarter, or that with a limit
(lib/methods/rl/windows.py), and warns if the 99% interval lies beyond its limit as a whole. The limits are ours: they are far from what
a run does by chance, and papers name none.

    hacking            a held-out measure that is no reward has fallen since an earlier step, and the reward has risen since then.
                       Gao et al. 2022, https://arxiv.org/abs/2210.10760: the proxy goes on rising while what it stands for falls. The
                       fall is tested with the standard errors of both means as if they were of different prompts, which is cautious,
                       and at a level divided by the number of earlier measurements (Bonferroni), since the highest is picked.
    entropy collapse   the entropy is below a fifth of what it was: Yu et al. 2025, https://arxiv.org/abs/2503.14476, section 3.1;
                       Cui et al. 2025, https://arxiv.org/abs/2505.22617
    repetition         distinct-2 is below half of what it was (lib/methods/rl/distinct.py)
    length explosion   the mean length has more than doubled, or the share of answers that are cut off has risen by more than a quarter
    kl                 the KL to the reference, in nats an answer, is above its limit
    equal groups       more than four fifths of the groups have answers of equal reward, which teach nothing: Yu et al. 2025, section 3.2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib.methods.rl.windows import LEVEL, SHORTEST, Window, difference, end, ends, start, window

ENTROPY, DISTINCT, LENGTH, CUT, EQUAL = 0.2, 0.5, 2.0, 0.25, 0.8
FEWEST_ANSWERS = 10
"""Held-out answers below which the normal approximation of their mean says nothing."""

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Finding:
    name: str
    text: str
    evidence: tuple[Window, ...]

    def lines(self) -> list[str]:
        """Returns the evidence in words: a line for each measure."""
        measures = dict.fromkeys(w.measure for w in self.evidence)
        return [f"{m}: {'; '.join(w.line() for w in self.evidence if w.measure == m)}" for m in measures]

    def to_dict(self) -> dict:
        """Returns what provenance.json records."""
        evidence = [
            {"measure": w.measure, "steps": [w.first, w.last], "mean": w.mean, "interval": list(w.interval)}
            for w in self.evidence
        ]
        return {"name": self.name, "text": self.text, "evidence": evidence}


def find(rows: Sequence[Mapping], measures: Sequence[str] = (), kl_limit: float | None = None) -> list[Finding]:
    """rows: as Run.metrics() returns them; measures: names in eval_rewards/NAME that aren't rewards and are better if higher; kl_limit:
    in nats an answer. None: no limit."""
    found = [_hacking(rows, name) for name in measures]
    found += [_entropy(rows), _repetition(rows), _length(rows), _divergence(rows, kl_limit), _equal_groups(rows)]
    return [f for f in found if f]


def points(rows: Sequence[Mapping], key: str) -> Points:
    """Returns (step, value) of the rows that have a value of `key`."""
    return [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]


def divergence(rows: Sequence[Mapping]) -> Points:
    """Returns the KL to the reference in nats an answer: logged by PPO, and of GRPO's KL a token times the tokens of an answer."""
    if found := points(rows, "kl_sequence"):
        return found
    both = [row for row in rows if row.get("kl") is not None and row.get("completions/mean_length") is not None]
    return [(row["step"], row["kl"] * row["completions/mean_length"]) for row in both]


def too_few(rows: Sequence[Mapping]) -> bool:
    """Whether beginning and end can't be told apart."""
    return len(points(rows, "reward")) < 2 * SHORTEST


def _hacking(rows: Sequence[Mapping], name: str) -> Finding | None:
    from scipy.stats import norm

    keys, held = (f"eval_rewards/{name}", f"eval_standard_error/{name}"), []
    for row in rows:
        if row.get(keys[1]) is not None and row["eval_answers"] >= FEWEST_ANSWERS:
            held.append(Window(f"held-out {name}", row["step"], row["step"], row[keys[0]], row[keys[1]], float("inf")))
    if len(held) < 2:
        return None
    *earlier, last = held
    reach = float(norm.ppf(1 - (1 - LEVEL) / 2 / len(earlier)))
    fallen = [h for h in earlier if last.mean - h.mean + reach * (last.error**2 + h.error**2) ** 0.5 < 0]
    reward = points(rows, "reward")
    if not fallen or len(reward) < 2 * SHORTEST:
        return None
    best = max(fallen, key=lambda h: h.mean)
    size = start(reward)
    until = max(size, sum(step <= best.first for step, _ in reward))
    before, after = window("reward", reward[until - size : until]), window("reward", reward[-end(reward) :])
    if before.last >= after.first or difference(before, after)[0] <= 0:
        return None
    text = (
        f"The reward rises while {name} of held-out answers falls: the model learns what the reward overrates. Use an earlier "
        "checkpoint, a larger KL weight, or another reward."
    )
    return Finding("hacking", text, (before, after, best, last))


def _entropy(rows: Sequence[Mapping]) -> Finding | None:
    text = (
        "The entropy has collapsed: answers to a prompt are nearly all the same, so little is left to learn from. Raise "
        "train.temperature or, in GRPO, train.epsilon_high, or lower train.learning_rate."
    )
    return _compared(rows, "entropy", "entropy", "entropy collapse", text, below=ENTROPY)


def _repetition(rows: Sequence[Mapping]) -> Finding | None:
    text = "Answers repeat the same words, within or between them: read some. A KL weight holds the model closer to its start."
    return _compared(rows, "distinct_2", "distinct-2", "repetition", text, below=DISTINCT)


def _length(rows: Sequence[Mapping]) -> Finding | None:
    text = (
        "Answers have become much longer. If their task doesn't call for it, the reward favours length: add --rewards.length with a "
        "negative weight, or --rewards.unfinished."
    )
    longer = _compared(rows, "completions/mean_length", "tokens an answer", "length explosion", text, above=LENGTH)
    cut = ends("share cut off", points(rows, "completions/clipped_ratio"))
    evidence = longer.evidence if longer else ()
    if cut and difference(*cut)[0] > CUT:
        evidence += cut
    return Finding("length explosion", text, evidence) if evidence else None


def _divergence(rows: Sequence[Mapping], limit: float | None) -> Finding | None:
    both = ends("KL, nats an answer", divergence(rows))
    if limit is None or not both or both[1].interval[0] <= limit:
        return None
    text = f"The KL to the reference is past its limit of {limit:g} nats an answer. Raise its weight, or use an earlier checkpoint."
    return Finding("kl", text, both)


def _equal_groups(rows: Sequence[Mapping]) -> Finding | None:
    both = ends("share of groups without spread", points(rows, "frac_reward_zero_std"))
    if not both or both[1].interval[0] <= EQUAL:
        return None
    text = (
        "Most groups have answers of equal reward, which teach nothing: prompts are too hard or too easy, or answers alike. Choose other "
        "prompts, raise train.num_generations, or add a reward with more steps."
    )
    reward = ends("reward", points(rows, "reward"))
    return Finding("equal groups", text, both + (reward or ()))


def _compared(
    rows: Sequence[Mapping], key: str, measure: str, name: str, text: str, below: float = 0.0, above: float = 0.0
) -> Finding | None:
    """Returns a finding if the mean at the end is below, or above, that many times the mean at the start."""
    both = ends(measure, points(rows, key))
    if not both:
        return None
    low, high = difference(*both, factor=below or above)
    return Finding(name, text, both) if (high < 0 if below else low > 0) else None
