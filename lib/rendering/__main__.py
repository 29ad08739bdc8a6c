"""`python -m lib.rendering`: reads a request of lib/rendering/sample.py from standard input and prints the result, both as JSON."""

from __future__ import annotations

import json
import sys


def answer(asked: dict) -> dict:
    """Returns the reply to a request: the counts, the base's window and a row to show, or {"problem": text}."""
    from lib.config.job import Model
    from lib.rendering.base import base
    from lib.rendering.counts import Counts
    from lib.rendering.sequences import Settings, sequences
    from lib.rendering.shown import fits, shown

    model, settings = Model(**asked["model"]), Settings(**asked["settings"])
    try:
        known = base(model, settings)
    except (ValueError, OSError) as e:
        text = " ".join(str(e).split())
        return {"problem": text if text.startswith("model.") else f"model.base: {text}"}
    kind, row_shown = asked["kind"], None
    counts = {"train": Counts(kind), "heldout": Counts(kind)}
    if why := known.unfit(kind, settings):
        return {"problem": why}
    found = sequences(known.tokenizer, kind, [row for *_, row in asked["rows"]], settings)
    for (side, place, row), (made, result) in zip(asked["rows"], found, strict=True):
        counts[side].add(place, kind, row, made, result, settings, known)
        if side == "train" and not isinstance(result, Exception):
            whole = all(fits(s, settings) for s in result)
            if row_shown is None or (whole and not row_shown[0]):  # the first row that is not cut, else the first row
                row_shown = (whole, place, result)
    lines = shown(known.tokenizer, kind, *row_shown[1:], settings) if asked["show"] and row_shown else []
    return {side: vars(c) for side, c in counts.items()} | {"window": known.window, "shown": lines}


if __name__ == "__main__":
    sys.modules["torch"] = None  # makes importing torch fail, so that transformers works without it
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401 - the slowest imports run while the driver reads the rows
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would warn about long rows, which are counted here
    if request := sys.stdin.read():
        print(json.dumps(answer(json.loads(request))))
