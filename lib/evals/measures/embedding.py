"""Measures of embedding models: similarity of sentences, and retrieval. Similarity is the cosine of two vectors.

    sts        Spearman's rank correlation of similarities and people's scores (Cer et al. 2017, https://arxiv.org/abs/1708.00055)
    retrieval  for each anchor, the positives and negatives of all held-out rows ranked by similarity:
               recall@k   share of its positives among the first k
               mrr        1 / rank of its first positive
               ndcg@10    Σ 1 / log₂(rank + 1) over its positives among the first 10, as a share of the largest possible sum (Järvelin and
                          Kekäläinen 2002)

Equal texts are one passage, and all positives of an anchor are right. A passage with the similarity of a positive is ranked before it.
"""

from __future__ import annotations

import math
from typing import Any

from lib.evals.context import Context
from lib.evals.task import Scores

AT = 10
"""k of recall@k and of nDCG."""
KINDS = {"sts": "encoder", "retrieval": "encoder"}
"""As in lib/evals/measures/denoising.py."""
ALSO = ("masked_lm", "discriminator", "causal_lm")
"""Kinds of model whose last layer can be pooled too."""


def sts(context: Context) -> list[Scores]:
    """Returns the correlation of each run on the held-out pairs."""
    import numpy as np

    rows = context.rows("sts")
    texts = list(dict.fromkeys(text for row in rows for text in (row["a"], row["b"])))
    found = []
    for run, future in {run: context.engine.embed(run, texts) for run in context.job.runs}.items():
        vectors = dict(zip(texts, np.asarray(future.result()), strict=True))
        cosines = [float(vectors[row["a"]] @ vectors[row["b"]]) for row in rows]
        ids, scores = [f"row-{i}" for i in range(len(rows))], [row["score"] for row in rows]
        found.append(Scores("sts", "spearman", run, ids, cosines, scores, kind="spearman", headline=True))
    return found


def retrieval(context: Context) -> list[Scores]:
    """Returns the scores of each run on the held-out rows; job.limit limits the anchors, and not the passages."""
    rows = [*context.all_rows("retrieval")]
    anchors = list(dict.fromkeys(row["anchor"] for row in context.rows("retrieval")))
    passages = list(dict.fromkeys(text for row in rows for text in (row["positive"], *row["negatives"])))
    where = {text: i for i, text in enumerate(passages)}
    right: dict[str, set[int]] = {}
    for row in rows:
        right.setdefault(row["anchor"], set()).add(where[row["positive"]])
    asked = {
        run: (context.engine.embed(run, anchors, "query"), context.engine.embed(run, passages, "document"))
        for run in context.job.runs
    }
    found = []
    for run, futures in asked.items():
        each = ranked(*(f.result() for f in futures), [right[anchor] for anchor in anchors])
        ids = [f"anchor-{i}" for i in range(len(anchors))]
        for metric in each[0]:
            kind = "proportion" if metric.startswith("recall") else "mean"
            tops = [scores[metric] for scores in each]
            found.append(Scores("retrieval", metric, run, ids, tops, kind=kind, headline=metric == "recall@1"))
    return found


def ranked(anchors: Any, passages: Any, right: list[set[int]]) -> list[dict[str, float]]:
    """Returns the metrics of each anchor. anchors (Q, D) and passages (P, D): vectors of length 1; right: indices of each anchor's
    positives."""
    import numpy as np

    anchors_QD, passages_PD = np.asarray(anchors), np.asarray(passages)
    found = []
    for anchor_D, wanted in zip(anchors_QD, right, strict=True):
        scores_P = passages_PD @ anchor_D
        positives = np.zeros(len(scores_P), bool)
        positives[[*wanted]] = True
        order_P = np.lexsort((positives, -scores_P))
        ranks = np.flatnonzero(positives[order_P]) + 1
        best = sum(1 / math.log2(n + 1) for n in range(1, min(len(wanted), AT) + 1))
        found.append({
            "recall@1": float((ranks <= 1).sum() / len(wanted)),
            f"recall@{AT}": float((ranks <= AT).sum() / len(wanted)),
            "mrr": float(1 / ranks[0]),
            f"ndcg@{AT}": float(sum(1 / math.log2(n + 1) for n in ranks if n <= AT) / best),
        })  # fmt: skip
    return found
