"""Rows of metrics.jsonl as a GRPO run logs them, healthy or with a fault, without a model."""

import random

HEALTHY = {
    "reward": (0.3, 0.6), "entropy": (1.0, 0.5), "distinct_2": (0.6, 0.45), "completions/mean_length": (30, 36),
    "completions/clipped_ratio": (0.1, 0.05), "frac_reward_zero_std": (0.2, 0.4), "kl": (0.0, 0.08),
    "clip_ratio/region_mean": (0.01, 0.01), "rewards/length/mean": (0.3, 0.6),
}  # fmt: skip
"""{metric: (at the start, at the end)}"""

FAULTS: dict[str, dict] = {
    "hacking": {"held": (0.6, 0.5, 0.2)},
    "entropy collapse": {"entropy": (1.0, 0.0)},
    "repetition": {"distinct_2": (0.6, 0.05)},
    "length explosion": {"completions/mean_length": (30, 120)},
    "kl": {"kl": (0.0, 0.6)},
    "equal groups": {"frac_reward_zero_std": (0.7, 1.0)},
}


def rows(steps: int = 60, held=(0.3, 0.4, 0.5), seed: int = 0, **changed: tuple[float, float]) -> list[dict]:
    """Each metric goes evenly from its start to its end, with noise of a tenth of it; `held`, the measure `demo` of 100 held-out
    answers, at the start, the middle and the end."""
    rng, out = random.Random(seed), []
    trends = HEALTHY | changed
    for step in range(1, steps + 1):
        at = (step - 1) / max(1, steps - 1)
        levels = {k: a + (b - a) * at for k, (a, b) in trends.items()}
        out.append({"step": step} | {k: v + rng.gauss(0, 0.1 * v) for k, v in levels.items()})
    return [*out, *(_held(steps * i // 2, share, 100) for i, share in enumerate(held))]


def noise(seed: int, steps: int = 60, rho: float = 0.6) -> list[dict]:
    """Metrics without a trend: an autoregressive series each, of correlation rho from step to step."""
    rng = random.Random(seed)
    level = {k: ((a + b) / 2, 0.3 * (a + b) / 2) for k, (a, b) in HEALTHY.items()}
    state, out = {k: rng.gauss(0, 1) for k in level}, []
    for step in range(1, steps + 1):
        out.append({"step": step} | {k: mean + sd * state[k] for k, (mean, sd) in level.items()})
        state = {k: rho * x + (1 - rho**2) ** 0.5 * rng.gauss(0, 1) for k, x in state.items()}
    return [*out, *(_held(steps * i // 4, sum(rng.random() < 0.5 for _ in range(50)) / 50, 50) for i in range(5))]


def _held(step: int, share: float, answers: int) -> dict:
    error = (share * (1 - share) / (answers - 1)) ** 0.5
    return {
        "step": step, "eval_answers": answers, "eval_reward": 0.5, "eval_tokens": 30.0, "eval_missing": 0.0,
        "eval_rewards/demo": share, "eval_standard_error/demo": error,
    }  # fmt: skip
