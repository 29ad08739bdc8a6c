"""transformers' Trainer for losses that are means over a whole optimizer step, whatever its micro-batches and workers.

Trainer averages the means of the micro-batches, so that a step would change with scale.micro_batch where they have different numbers of
rows or labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
from transformers import Trainer


class WholeStepTrainer(Trainer, ABC):
    """A subclass's compute_loss divides by num_items_in_batch: what counts() counts, over the whole step."""

    packed = True
    """Rows share no prefixes that could be computed once (lib/stage/worker.py, save_work)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
        self.loss_is_scaled_for_ga = True

    @abstractmethod
    def counts(self, inputs: dict) -> dict[str, int]:
        """As lib/methods/heldout.py counts; the first is what the loss is a mean over."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns (micro-batches of this worker, what they count in the step over all workers)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = torch.tensor(sum(next(iter(self.counts(batch).values())) for batch in batches), device=device)
        return batches, self.accelerator.reduce(items, "sum")

    def log_means(self, mode: str, found: dict[str, tuple[float, int]]) -> None:
        """Keeps metrics for the next line of the log. mode: train or eval; found: {metric: (sum, number)} of a micro-batch, whose ratio over
        all workers is kept."""
        both = torch.tensor([*map(list, found.values())], dtype=torch.float64, device=self.args.device)
        for name, (total, count) in zip(found, self.accelerator.reduce(both, "sum").tolist(), strict=True):
            self._metrics[mode][name].append(total / count if count else 0.0)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        found = {f"{prefix}{name}": sum(values) / len(values) for name, values in self._metrics[mode].items() if values}
        self._metrics[mode].clear()
        super().log(logs | found, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Only the loss and the metrics are measured; labels or logits of different lengths needn't be gathered."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None
