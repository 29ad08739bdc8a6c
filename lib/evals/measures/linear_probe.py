"""How much of a text's content a linear classifier reads from an encoder's vectors (Alain and Bengio 2016,
https://arxiv.org/abs/1610.01644): one yardstick for all kinds of encoders, however they were trained.

The texts are messages of the demo (lib/data/demo.py). The classes are a part of the order: its hour, which has to be worked out ("quarter
to nine in the evening" is 20:45), its day, which has to be in a quarter of the messages ("the day after Monday"), and its name. The encoder
isn't changed: multinomial logistic regression with an L2 penalty is fitted to its vectors of TRAIN messages and tested on held-out ones. A
score is 1 if the class is right. Vectors of random weights already tell words apart, so compare a run with its own start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from lib.data import demo
from lib.evals.context import Context
from lib.evals.task import Scores

TRAIN, HELDOUT = 1000, 400
"""Messages that the classifier is fitted to, and most that it is tested on."""
PARTS: dict[str, Callable[[demo.Order], str]] = {
    "hour": lambda order: order.time[:2],
    "day": lambda order: order.day,
    "name": lambda order: order.name,
}
"""{metric: its part of an order}; the first is the headline."""
KINDS = {"linear_probe": "encoder"}
"""As in lib/evals/measures/denoising.py."""


def measure(context: Context) -> list[Scores]:
    """Returns the scores of each run for each part of the order."""
    train = list(islice(demo.orders("probe", "train"), TRAIN))
    heldout = list(islice(demo.orders("probe", "heldout"), min(context.job.limit or HELDOUT, HELDOUT)))
    texts = [message for _, message in train + heldout]
    found = []
    for run, future in {run: context.engine.embed(run, texts) for run in context.job.runs}.items():
        vectors = future.result()
        for name, part in PARTS.items():
            wanted = [part(order) for order, _ in train + heldout]
            tops = right(vectors[:TRAIN], wanted[:TRAIN], vectors[TRAIN:], wanted[TRAIN:])
            common = max(Counter(wanted[:TRAIN]).values()) / TRAIN
            ids = [f"message-{i}" for i in range(len(heldout))]
            found.append(
                Scores(
                    "linear_probe", name, run, ids, tops, kind="proportion", headline=name == "hour", chance=common,
                    version=demo.VERSION
                )
            )  # fmt: skip
    return found


def right(train_ND: Any, classes_N: list[str], test_MD: Any, wanted_M: list[str]) -> list[float]:
    """Returns 1 or 0 for each test vector: whether the classifier that is fitted to the training vectors gives its class. Each dimension is
    first scaled to the training vectors' mean 0 and variance 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_ND, classes_N)
    return [float(guess == wanted) for guess, wanted in zip(fitted.predict(test_MD), wanted_M, strict=True)]
