"""How often to save on machines that are preempted, and the cost of saving and preemptions, for W seconds of work saved every τ.

δ: one save; R: restart (Python, Ray, weights, the checkpoint); D: time without a machine; M: mean time between preemptions, which
are independent (exponential). All in seconds.

    τ = √(2 δ M)                                                                       Young 1974, https://doi.org/10.1145/361147.361115
    τ = √(2 δ M) [1 + ⅓ √(δ / 2M) + ⅑ δ / 2M] − δ   for δ < 2M, else M                 Daly 2006, https://doi.org/10.1016/j.future.2004.11.016
    E[time of a piece τ] = e^(R/M) (M + D) (e^((τ + δ) / M) − 1)                       the same, eq. 20, with D
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    seconds: float
    """Until the work is done, including the wait for machines."""
    paid_seconds: float
    """Seconds with a machine."""
    wasted: float
    """Share of the paid seconds spent on saving, restarting and repeated work, 0 to 1."""
    preemptions: float


def young(save_s: float, mtbf_s: float) -> float:
    return math.sqrt(2 * save_s * mtbf_s)


def daly(save_s: float, mtbf_s: float) -> float:
    """Returns the interval between two saves, in seconds of work, that minimises the expected loss. Accurate even if M is not much
    longer than δ."""
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    part = save_s / (2 * mtbf_s)
    return young(save_s, mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - save_s


def expected(
    work_s: float, interval_s: float, save_s: float, restart_s: float, gone_s: float, mtbf_s: float
) -> Expected:
    """Returns the expected times of a run. mtbf_s: math.inf without preemptions. The last piece of work may be shorter, and is saved
    like the others."""
    whole, rest = divmod(work_s, interval_s)
    pieces = [(whole, interval_s)] + ([(1, rest)] if rest > 1e-9 * interval_s else [])
    if math.isinf(mtbf_s):
        paid = sum(n * (piece + save_s) for n, piece in pieces)
        return Expected(paid, paid, 1 - work_s / paid, 0.0)
    paid = sum(n * math.exp(restart_s / mtbf_s) * mtbf_s * math.expm1((piece + save_s) / mtbf_s) for n, piece in pieces)
    preemptions = paid / mtbf_s
    return Expected(paid + preemptions * gone_s, paid, 1 - work_s / paid, preemptions)


def sessions(work_s: float, interval_s: float, save_s: float, restart_s: float, session_s: float) -> int | None:
    """Returns how many sessions of fixed length the work takes, if unsaved work is lost at the end of each; None if not even one
    interval fits into a session."""
    in_one = int((session_s - restart_s) // (interval_s + save_s))
    return math.ceil(math.ceil(work_s / interval_s) / in_one) if in_one > 0 else None
