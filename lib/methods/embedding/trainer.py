"""transformers' Trainer with a contrastive loss of sentence-transformers.

sentence-transformers' own trainer isn't used: it writes a model card with dates and times into the model, builds a second model on a
resume, and accumulates micro-batches that don't see each other's negatives.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lib.methods.embedding.losses import KEYS, Contrast, measures


class EmbedTrainer(Trainer):
    packed = True
    """Rows share no prefixes that could be computed once (lib/stage/worker.py, save_work)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.contrast = Contrast(self.model, self.args)
        self.heldout_rows: list[tuple[float, int]] = []
        """(loss, 1) of each row, of the last evaluation; in place of lib/methods/heldout.py's batches."""
        self._metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}

    def counts(self, inputs: dict) -> dict[str, int]:
        """As lib/methods/heldout.py counts."""
        return {"rows": len(inputs["rows"])}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.contrast(model, inputs["features"])
        return (loss, {}) if return_outputs else loss

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Measures all held-out rows together, whatever the batches: their loss depends on the rows that it compares."""
        from accelerate.utils import gather_object

        model, found = self.model.eval(), []
        with torch.no_grad():
            for inputs in map(self._prepare_inputs, dataloader):
                rows = inputs["rows"].tolist()
                plain = [{k: v for k, v in column.items() if k != KEYS} for column in inputs["features"]]
                vectors = [model(column)["sentence_embedding"].float().cpu() for column in plain]
                found += zip(rows, zip(*vectors, strict=True), strict=True)
        by_row = dict(gather_object(found))  # some rows are computed by every worker
        columns = [torch.stack(column) for column in zip(*(by_row[row] for row in sorted(by_row)), strict=True)]
        losses, shares = measures(columns, self.args)
        self.heldout_rows = [(loss, 1) for loss in losses]
        found = {"loss": sum(losses) / len(losses)} | shares
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(by_row))

    def save_model(self, output_dir=None, _internal_call=False):
        """A checkpoint holds the weights alone; the model is a folder that SentenceTransformer loads."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.model.save(output_dir or self.args.output_dir, create_model_card=False)
