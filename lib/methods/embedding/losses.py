"""Contrastive losses with gradient caching (GradCache: Gao et al. 2021, https://arxiv.org/abs/2101.06983): vectors are computed in
micro-batches, and the loss compares all rows of a step.

    mnrl      multiple negatives ranking: Henderson et al. 2017, https://arxiv.org/abs/1705.00652, section 4.4; InfoNCE: van den Oord et al.
              2018, https://arxiv.org/abs/1807.03748, equation 4
    simcse    the same of two dropouts of a text: Gao et al. 2021, https://arxiv.org/abs/2104.08821, equation 4. Its MLP on top of [CLS]
              isn't added.
    triplet   FaceNet: Schroff et al. 2015, https://arxiv.org/abs/1503.03832, equation 2; vectors have length 1, so ‖a − b‖² = 2 − 2 cos(a, b)
              and the margin is half of FaceNet's α. A row with several negatives is the mean over them.
    any of them at several lengths of the vector: Matryoshka, Kusupati et al. 2022, https://arxiv.org/abs/2205.13147, equation 1

A row whose positive is also another row's is compared with it as a negative; lib/methods/embedding/build.py counts these rows.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn

from lib.methods.dropout import RowDropout
from lib.methods.embedding.config import EmbedConfig

KEYS = "dropout_keys"
"""Name of the rows' keys among the features of a column."""


class RowWise(CachedLossMixin):
    """A cached loss whose micro-batches have no more padding than they need, and a dropout by the rows' keys."""

    def embed_minibatch(self, sentence_feature: dict, begin: int, end: int, *args: Any, **kwargs: Any):
        rows = {name: value[begin:end] for name, value in sentence_feature.items()}
        keys_B = rows.pop(KEYS)
        width = int(rows["attention_mask"].sum(1).max())
        rows = {name: value[:, :width] for name, value in rows.items()}
        with RowDropout(keys_B):
            return super().embed_minibatch(rows, 0, end - begin, *args, **kwargs)


class InfoNce(RowWise, CachedMultipleNegativesRankingLoss):
    """The mean over the rows of − log softmax of the row's positive among the positives and negatives of all rows of a step."""


class Triplet(RowWise, nn.Module):
    """The mean over rows and their negatives of max(0, cos(a, n) − cos(a, p) + margin)."""

    def __init__(self, model: nn.Module, margin: float, mini_batch_size: int):
        super().__init__()
        self.model, self.mini_batch_size = model, mini_batch_size
        self.row = TripletLoss(model, TripletDistanceMetric.COSINE, margin)

    def calculate_loss(self, reps, labels=None, *, with_backward: bool = False) -> Tensor:
        anchors, positives, *negatives = (torch.cat(column) for column in reps)
        each = [self.row.compute_loss_from_embeddings([anchors, positives, n], None) for n in negatives]
        loss = torch.stack(each).mean()
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def forward(self, features: list[dict], labels=None) -> Tensor:
        return self.forward_cached(features, labels)


class Contrast:
    """The loss of a step, of the features of its columns: [{"input_ids": (B, T), …, KEYS: (B,)}, …].

    model: a SentenceTransformer. args.mini_batch_size: texts that are embedded at a time.
    """

    def __init__(self, model: Any, args: EmbedConfig):
        self.cached: Any
        if args.loss == "triplet":
            self.cached = Triplet(model, args.triplet_margin, args.mini_batch_size)
        else:
            self.cached = InfoNce(
                model, 1 / args.temperature, mini_batch_size=args.mini_batch_size, gather_across_devices=True
            )
        self.loss = self.cached
        if args.matryoshka_dims:
            self.loss = MatryoshkaLoss(model, self.cached, args.matryoshka_dims)

    def __call__(self, model: nn.Module, features: list[dict]) -> Tensor:
        """model: the model, wrapped as it is trained."""
        self.cached.model = model
        return self.loss(features, None)


def measures(columns: list[Tensor], args: EmbedConfig, at_once: int = 256) -> tuple[list[float], dict[str, float]]:
    """Returns (the loss of each row, {measure: share of rows that are right}), without dropout, all rows compared with each other.

    columns: vectors (N, D) of length 1 of the anchors, positives and negatives; at_once: rows that are compared at a time. Measures: of
    mnrl, recall@1: the anchor's own positive is nearer than all other positives and negatives; a text equal to it, whose similarity
    differs by rounding alone, counts as it. Of triplet, accuracy: it is nearer than the row's negatives. Of simcse, none.
    """
    anchors, positives, *negatives = columns
    if args.loss == "triplet":
        own = (anchors * positives).sum(1)
        others = torch.stack([(anchors * n).sum(1) for n in negatives])
        losses = (others - own + args.triplet_margin).clamp(min=0).mean(0)
        return losses.tolist(), {"accuracy": (own > others.amax(0)).float().mean().item()}
    losses, first, candidates = [], 0, torch.cat([positives, *negatives])
    for at in range(0, len(anchors), at_once):
        scores = anchors[at : at + at_once] @ candidates.T
        own = torch.arange(at, at + len(scores))
        losses += nn.functional.cross_entropy(scores / args.temperature, own, reduction="none").tolist()
        first += int((scores.amax(1) <= scores.gather(1, own[:, None])[:, 0] + 1e-6).sum())
    return losses, {} if args.loss == "simcse" else {"recall@1": first / len(anchors)}
