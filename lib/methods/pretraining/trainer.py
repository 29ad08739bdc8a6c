"""transformers' Trainer with the losses of a pre-training objective, as sums over the whole optimizer step.

Trainer divides by the number of labels only what the model's own loss function computes, and BERT's takes the argument without using
it: its loss would double with two accumulated micro-batches.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from lib.methods.pretraining.clm import Clm
from lib.methods.pretraining.electra import Electra
from lib.methods.pretraining.mlm import Mlm
from lib.methods.pretraining.nsp import Nsp
from lib.methods.pretraining.objective import IGNORED, Objective, Part
from lib.methods.pretraining.prefix_lm import PrefixLm
from lib.methods.pretraining.span_corruption import SpanCorruption

OBJECTIVES: dict[str, type[Objective]] = {
    "clm": Clm, "prefix_lm": PrefixLm, "mlm": Mlm, "nsp": Nsp, "electra": Electra, "span_corruption": SpanCorruption,
}  # fmt: skip
"""{value of train.objective: its class}"""


class PretrainTrainer(Trainer):
    """Trains with an Objective on Blocks."""

    packed = True
    """Rows are full, and share no prefixes that could be computed once (lib/stage/worker.py, save_work)."""

    def __init__(self, objective: Objective, **kwargs: Any):
        super().__init__(data_collator=objective.collate, **kwargs)
        self.objective = objective
        self._metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the labels of the whole step

    def counts(self, inputs: dict) -> dict[str, int]:
        """As lib/methods/heldout.py counts."""
        return {"tokens": int((inputs["labels"] != IGNORED).sum())}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns (micro-batches of this worker, number of labels in the step over all workers)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        labels = torch.tensor(sum(self.counts(batch)["tokens"] for batch in batches), device=device)
        return batches, self.accelerator.reduce(labels, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parts, metrics = self.objective.losses(model, inputs)
        count = next(iter(parts.values())).count
        loss = sum(part.weight * part.total / max(1, part.count) for part in parts.values())
        self._log_means("train" if model.training else "eval", (parts if len(parts) > 1 else {}) | metrics)
        if num_items_in_batch is not None and model.training:
            # DDP averages the gradients of the workers, which cancels num_processes.
            loss = loss * count * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        return (loss, {}) if return_outputs else loss

    def _log_means(self, mode: str, found: dict[str, Part]) -> None:
        both = [[float(part.total.detach()), part.count] for part in found.values()]
        of_all = self.accelerator.reduce(torch.tensor(both, dtype=torch.float64, device=self.args.device), "sum")
        for name, (total, count) in zip(found, of_all.tolist(), strict=True):
            self._metrics[mode][name].append(total / count if count else 0.0)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        found = {f"{prefix}{name}": sum(values) / len(values) for name, values in self._metrics[mode].items() if values}
        self._metrics[mode].clear()
        super().log(logs | found, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Only the loss is measured; labels of different lengths needn't be gathered."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.objective.save(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir))
