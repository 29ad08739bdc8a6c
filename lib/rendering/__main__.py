"""`python -m lib.rendering`: a request of lib/rendering/sample.py on standard input, what was found on standard output, both JSON."""

from __future__ import annotations

import json
import sys


def answer(asked: dict) -> dict:
    from lib.config import Model
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
    counts, picture, kind = {"train": Counts(), "heldout": Counts()}, [], asked["kind"]
    if why := known.unfit(kind):
        return {"problem": why}
    found = sequences(known.tokenizer, kind, [row for *_, row in asked["rows"]], settings)
    for (side, place, row), (made, said) in zip(asked["rows"], found, strict=True):
        counts[side].add(place, kind, row, made, said, settings, known)
        whole = side == "train" and not isinstance(said, Exception) and all(fits(s, settings) for s in said)
        if asked["show"] and whole and not picture:
            picture = shown(known.tokenizer, place, kind, said, settings)
    return {side: vars(c) for side, c in counts.items()} | {"window": known.window, "shown": picture}


if __name__ == "__main__":
    sys.modules["torch"] = None  # not found, says importlib; transformers then does without
    print(json.dumps(answer(json.load(sys.stdin))))
