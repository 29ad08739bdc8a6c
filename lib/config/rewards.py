"""The section `rewards` of stages that learn from rewards: {name of a reward: its weight}. One of weight 0 is measured on held-out
prompts, and nothing is learnt from it.

A name may be a path (run:runs/reward), with dots in it, which a parser of nested keys would split.
"""

from __future__ import annotations

import math

from lib.errors import UsageError

PREFIX = "--rewards."


def options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the options --rewards.NAME WEIGHT out of a command line. Returns (the rest, {name: text of the weight})."""
    rest, found, at = [], {}, 0
    while at < len(argv):
        word, equals, value = argv[at].partition("=")
        at += 1
        if not word.startswith(PREFIX):
            rest.append(argv[at - 1])
            continue
        if not equals:
            if at == len(argv):
                raise UsageError(f"{word}: give a weight, such as {word} 1.")
            value, at = argv[at], at + 1
        found[word.removeprefix(PREFIX)] = value
    return rest, found


def section(tree: dict, given: dict[str, str]) -> dict[str, float]:
    """Returns {name: weight} of a YAML's section and the command line's options, which replace weights of the same name.

    null leaves a reward out. Raises UsageError for any other weight that isn't a finite number.
    """
    there = tree.get("rewards") or {}
    if not isinstance(there, dict):
        raise UsageError(f"rewards: must hold names and weights, such as demo: 1, is {there!r}.")
    weights = {}
    for name, value in {**there, **given}.items():
        if value in (None, "null"):
            continue
        try:
            weights[name] = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            weights[name] = math.nan
        if not math.isfinite(weights[name]):
            raise UsageError(f"rewards.{name}: the weight must be a number, or null to leave it out, is {value!r}.")
    return weights
