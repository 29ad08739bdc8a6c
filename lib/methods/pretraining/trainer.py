"""transformers' Trainer with the losses of a pre-training objective, as sums over the whole optimizer step.

Trainer divides by the number of labels only what the model's own loss function computes, and BERT's takes the argument without using
it: its loss would double with two accumulated micro-batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.methods.pretraining.clm import Clm
from lib.methods.pretraining.electra import Electra
from lib.methods.pretraining.mlm import Mlm
from lib.methods.pretraining.nsp import Nsp
from lib.methods.pretraining.objective import IGNORED, Objective
from lib.methods.pretraining.prefix_lm import PrefixLm
from lib.methods.pretraining.span_corruption import SpanCorruption
from lib.methods.whole_step import WholeStepTrainer

OBJECTIVES: dict[str, type[Objective]] = {
    "clm": Clm, "prefix_lm": PrefixLm, "mlm": Mlm, "nsp": Nsp, "electra": Electra, "span_corruption": SpanCorruption,
}  # fmt: skip
"""{value of train.objective: its class}"""


class PretrainTrainer(WholeStepTrainer):
    """Trains with an Objective on Blocks."""

    def __init__(self, objective: Objective, **kwargs: Any):
        super().__init__(data_collator=objective.collate, **kwargs)
        self.objective = objective

    def counts(self, inputs: dict) -> dict[str, int]:
        return {"tokens": int((inputs["labels"] != IGNORED).sum())}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parts, metrics = self.objective.losses(model, inputs)
        count = next(iter(parts.values())).count
        loss = sum(part.weight * part.total / max(1, part.count) for part in parts.values())
        logged = (parts if len(parts) > 1 else {}) | metrics
        sums = {name: (float(part.total.detach()), part.count) for name, part in logged.items()}
        self.log_means("train" if model.training else "eval", sums)
        if num_items_in_batch is not None and model.training:
            # DDP averages the gradients of the workers, which cancels num_processes.
            loss = loss * count * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        return (loss, {}) if return_outputs else loss

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.objective.save(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir))
