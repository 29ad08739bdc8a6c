"""Steps that run in order, each with its result, time and cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class Failed(Exception):
    """A step failed; str() is the reason and the remedy."""


class NotAskedFor(Exception):
    """The step was not requested; str() names the option that requests it."""


@dataclass
class Result:
    step: str
    outcome: Literal["passed", "failed", "not asked for", "not reached"] = "not reached"
    detail: str = ""
    """The step's finding, or the reason for its failure."""
    seconds: float = 0.0
    usd: float = 0.0
    """The cluster's cost during the step, according to its ledger."""


class Pipeline:
    """results: of all steps, including those not reached. spent() → dollars spent so far."""

    def __init__(self, steps: list[str], spent: Callable[[], float]):
        self.results = [Result(step) for step in steps]
        self.spent = spent
        self.told = ""

    def run(self, step: str, prove: Callable[[], str]) -> bool:
        """Runs a step and returns False if it failed. prove() returns its finding, or raises Failed or NotAskedFor. Any other exception
        also fails the step, and is re-raised."""
        [result] = [r for r in self.results if r.step == step]
        began, before, self.told = time.monotonic(), self.spent(), ""
        result.outcome, result.detail = "failed", "it was interrupted"
        try:
            result.detail = prove()
            result.outcome = "passed"
        except NotAskedFor as e:
            result.outcome, result.detail = "not asked for", str(e)
        except Failed as e:
            result.detail = str(e)
        except Exception as e:
            result.detail = f"{type(e).__name__}: {e}"
            raise
        finally:
            result.seconds, result.usd = time.monotonic() - began, self.spent() - before
            print(f"{mark(result)} {step}: {result.detail}  ({result.seconds:.1f} s)", flush=True)
        return result.outcome != "failed"

    def progress(self, text: str) -> None:
        """Prints the running step's progress when the text changes."""
        if text and text != self.told:
            print(f"    {text}", file=sys.stderr, flush=True)
        self.told = text

    @property
    def passed(self) -> bool:
        return all(r.outcome in ("passed", "not asked for") for r in self.results)


def mark(result: Result) -> str:
    return {"passed": "✔", "failed": "✘", "not asked for": "–", "not reached": " "}[result.outcome]
