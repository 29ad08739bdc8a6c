"""Hard negatives: the passages nearest to each pair's anchor under an encoder, without those that may be right too.

    Candidates are the positives of all other rows, each text once. Left out are the anchor's own positives, its own text, and, as in
    TopK-PercPos (Moreira et al. 2024, https://arxiv.org/abs/2407.15831, section 3), every passage p' with
        s(a, p') > s(a, p) − margin |s(a, p)|                    s: cosine similarity; p: the anchor's positive of lowest similarity
    The first num_negatives of the rest are the row's negatives. Rows for which fewer are left are left out.

sentence-transformers' mine_hard_negatives chooses the same passages (tests/methods/test_mining.py compares them). It isn't called because
it looks no further than the 10 × num_negatives nearest, joins equal rows and changes their order, and returns no counts.

The workers share the encoding, in shards that don't depend on their number. The result is kept in the run, so that a resume, on another
machine too, trains on the same negatives. Shapes: N anchors, P passages, D dimensions.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lib.config.job import Job
from lib.data import Loaded
from lib.distributed.collectives import barrier, gathered, share
from lib.generation.embedder import Embedder
from lib.methods.embedding.config import EmbedConfig
from lib.models import locate, pooling
from lib.run import Run
from lib.runtime import device, logs

FILE = "hard_negatives.json"
"""{"train" or "heldout": {counts: {…}, rows: [row, …], negatives: [[row whose positive it is, …], …]}}, counted from 0."""
SHARD = 512
"""Texts that a worker encodes together."""
AT_ONCE = 256
"""Anchors that are compared with all passages at a time."""
ROUNDING = 1e-6
"""Similarities that differ by less are equal."""


class Mined:
    """Rows with the negatives that were found. rows: as lib/data loads them; found: as FILE has them."""

    def __init__(self, rows: Any, found: dict):
        self.rows, self.kept, self.negatives = rows, found["rows"], found["negatives"]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict:
        negatives = [self.rows[n]["positive"] for n in self.negatives[index]]
        return self.rows[self.kept[index]] | {"negatives": negatives}


def mined(job: Job, args: EmbedConfig, inputs: Loaded) -> tuple[Any, Any]:
    """Returns the training rows and the held-out rows, with args.num_negatives each; held-out ones only for triplet, whose measure needs
    them. Sets inputs.check.mined. Every worker must call it. Raises ValueError if no row is left."""
    run = Run(job.run)
    sides = {"train": inputs.train} | ({"heldout": inputs.heldout} if inputs.heldout and args.loss == "triplet" else {})
    there = run.fs.exists(run.at(FILE))
    barrier()  # every worker has looked before one writes
    if not there:
        found = _mine(sides, args)
        if share()[0] == 0:
            run.write_json(FILE, found)
        barrier()
    kept = run.read_json(FILE, "Delete it to find the negatives again.")
    for side, of in kept.items():
        inputs.check.mined[side] = of["counts"]
        if not of["rows"]:
            raise ValueError(
                f"train.num_negatives: no {side} row has {args.num_negatives} passages that aren't too near to its anchor. Lower it, "
                "or train.relative_margin."
            )
        if share()[0] == 0:
            logs.say(_line(side, of["counts"], args))
    made = {side: Mined(sides[side], kept[side]) for side in sides}
    return made["train"], made.get("heldout", inputs.heldout)


def _mine(sides: dict[str, Any], args: EmbedConfig) -> dict[str, dict]:
    began = time.time()
    try:
        assert args.hard_negatives is not None
        model = Embedder(str(locate.snapshot(args.hard_negatives)), torch.float32, device.of_worker())
    except ValueError as e:
        raise ValueError(f"train.hard_negatives: {e}") from None
    found = {}
    for side, rows in sides.items():
        anchors, positives = list(rows["anchor"]), list(rows["positive"])
        asked, passages = list(dict.fromkeys(anchors)), list(dict.fromkeys(positives))
        vectors = (
            _vectors(model, texts, role, args.max_length) for texts, role in ((asked, "query"), (passages, "document"))
        )
        found[side] = choose(anchors, positives, asked, passages, *vectors, args.num_negatives, args.relative_margin)
    if share()[0] == 0:
        logs.say(f"negatives: compared in {time.time() - began:.0f} s, kept in {FILE}")
    return found


def _vectors(model: Embedder, texts: list[str], role: str, longest: int) -> np.ndarray:
    """Returns (len(texts), D). A text is cut to `longest` tokens, as in training."""
    rank, workers = share()
    prompt, longest = pooling.prompt(model.folder, role), min(longest, model.window)
    mine = {}
    for n, at in enumerate(range(0, len(texts), SHARD)):
        if n % workers == rank:
            read = [prompt + text for text in texts[at : at + SHARD]]
            ids = model.tokenizer(read, truncation=True, max_length=longest)["input_ids"]
            mine[n] = np.asarray(model.vectors(ids), np.float32)
    shards = {n: vectors for part in gathered(mine) for n, vectors in part.items()}
    return np.concatenate([shards[n] for n in sorted(shards)])


def choose(
    anchors: list[str], positives: list[str], asked: list[str], passages: list[str], asked_ND: np.ndarray, passages_PD: np.ndarray,
    count: int, margin: float | None,
) -> dict:  # fmt: skip
    """Returns a side of FILE. anchors, positives: of each row; asked, passages: the same texts once, with their vectors of length 1."""
    number, where = {text: n for n, text in enumerate(asked)}, {text: n for n, text in enumerate(passages)}
    right: list[set[int]] = [set() for _ in asked]
    first: dict[str, int] = {}
    for row, (anchor, positive) in enumerate(zip(anchors, positives, strict=True)):
        right[number[anchor]].add(where[positive])
        first.setdefault(positive, row)
    near, excluded = _nearest(asked, where, right, asked_ND, passages_PD, count, margin)
    rows = [row for row, anchor in enumerate(anchors) if len(near[number[anchor]]) == count]
    counts = {
        "rows": len(rows), "rows_left_out": len(anchors) - len(rows), "negatives": count, "passages": len(passages),
        "too_near": sum(excluded[number[anchor]] for anchor in anchors),
    }  # fmt: skip
    negatives = [[first[passages[n]] for n in near[number[anchors[row]]]] for row in rows]
    return {"counts": counts, "rows": rows, "negatives": negatives}


def _nearest(
    asked: list[str], where: dict[str, int], right: list[set[int]], asked_ND: np.ndarray, passages_PD: np.ndarray, count: int,
    margin: float | None,
) -> tuple[list[list[int]], list[int]]:  # fmt: skip
    """Returns (the `count` nearest allowed passages of each anchor, nearest first, or fewer; how many were too near)."""
    near, excluded = [], []
    for at in range(0, len(asked), AT_ONCE):
        for n, scores_P in enumerate(asked_ND[at : at + AT_ONCE] @ passages_PD.T, at):
            own = [*right[n]]
            lowest = float(scores_P[own].min())
            scores_P[own] = -np.inf
            if (same := where.get(asked[n])) is not None:
                scores_P[same] = -np.inf
            above_P = scores_P > (np.inf if margin is None else lowest - margin * abs(lowest) - ROUNDING)
            excluded.append(int(above_P.sum()))
            scores_P[above_P] = -np.inf
            best = np.argpartition(-scores_P, min(count, len(scores_P)) - 1)[:count]
            best = best[np.lexsort((best, -scores_P[best]))]
            near.append([int(p) for p in best if scores_P[p] > -np.inf])
    return near, excluded


def _line(side: str, counts: dict[str, int], args: EmbedConfig) -> str:
    found = (
        f"negatives: {counts['negatives']:,} for each of {counts['rows']:,} {side} rows from {counts['passages']:,} passages, "
        f"by {args.hard_negatives}"
    )
    found += f"; {counts['too_near'] / max(1, counts['rows'] + counts['rows_left_out']):,.1f} passages a row were too near its positive"
    return found + (
        f"; {counts['rows_left_out']:,} rows have too few and are left out" if counts["rows_left_out"] else ""
    )
