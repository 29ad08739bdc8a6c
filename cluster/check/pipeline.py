"""Steps that are gone through in order: what each said, its time and its cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class Failed(Exception):
    """What a step proves isn't so; str() says why, and what to do about it."""


class NotAskedFor(Exception):
    """The step has nothing to prove here; str() names the option with which it would."""


@dataclass
class Result:
    step: str
    outcome: Literal["passed", "failed", "not asked for", "not reached"] = "not reached"
    detail: str = ""
    """What it found, or why it failed."""
    seconds: float = 0.0
    usd: float = 0.0
    """What the cluster cost meanwhile, by its ledger."""


class Pipeline:
    """results: of all steps, also of those that aren't reached. spent() → dollars up to now."""

    def __init__(self, steps: list[str], spent: Callable[[], float]):
        self.results = [Result(step) for step in steps]
        self.spent = spent
        self.told = ""

    def run(self, step: str, prove: Callable[[], str]) -> bool:
        """Whether it didn't fail. prove() → what it found; raises Failed, NotAskedFor. Any other exception ends the step as failed too, and
        is raised on."""
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
        """Of the step that runs; shown when it is another than before."""
        if text and text != self.told:
            print(f"    {text}", file=sys.stderr, flush=True)
        self.told = text

    @property
    def passed(self) -> bool:
        return all(r.outcome in ("passed", "not asked for") for r in self.results)


def mark(result: Result) -> str:
    return {"passed": "✔", "failed": "✘", "not asked for": "–", "not reached": " "}[result.outcome]
