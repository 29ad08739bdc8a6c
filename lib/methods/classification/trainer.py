"""transformers' Trainer with the loss of a classifier or a regression, as a sum over the whole optimizer step.

    classes   − log softmax(z)_y        Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.1
    scores    (z − y)²                  the same for STS-B, whose scores aren't scaled

Both are means over the rows of a step, whatever its micro-batches and workers. Shapes: B rows, T tokens, C classes (1 for scores).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from lib.methods.embedding.dropout import RowDropout

KEYS = "dropout_keys"
"""Name of the rows' keys of dropout in a batch."""


def losses(logits_BC: Tensor, wanted_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns (the sum of the rows' losses, the number of rows whose most likely class is right; None for scores). wanted_B: indices of
    classes, or scores if they are floats."""
    if wanted_B.is_floating_point():
        return ((logits_BC.float()[:, 0] - wanted_B) ** 2).sum(), None
    loss = functional.cross_entropy(logits_BC.float(), wanted_B, reduction="sum")
    return loss, (logits_BC.argmax(1) == wanted_B).sum()


class ClassifyTrainer(Trainer):
    packed = True
    """Rows share no prefixes that could be computed once (lib/stage/worker.py, save_work)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the rows of the whole step

    def counts(self, inputs: dict) -> dict[str, int]:
        """As lib/methods/heldout.py counts."""
        return {"rows": len(inputs["wanted"])}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns (micro-batches of this worker, number of rows in the step over all workers)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = torch.tensor(sum(self.counts(batch)["rows"] for batch in batches), device=device)
        return batches, self.accelerator.reduce(rows, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        read = {name: value for name, value in inputs.items() if name not in ("wanted", KEYS)}
        with RowDropout(inputs[KEYS]):
            total, right = losses(model(**read).logits, inputs["wanted"])
        rows = len(inputs["wanted"])
        if right is not None:
            self._log_share("train" if model.training else "eval", float(right), rows)
        loss = total / rows
        if num_items_in_batch is not None and model.training:
            # DDP averages the gradients of the workers, which cancels num_processes.
            loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    def _log_share(self, mode: str, right: float, rows: int) -> None:
        both = torch.tensor([right, rows], dtype=torch.float64, device=self.args.device)
        right, of = self.accelerator.reduce(both, "sum").tolist()
        self._metrics[mode]["accuracy"].append(right / of)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        found = {f"{prefix}{name}": sum(values) / len(values) for name, values in self._metrics[mode].items() if values}
        self._metrics[mode].clear()
        super().log(logs | found, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Only the loss and the accuracy are measured; no logits are gathered."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None
