"""DPO with a loss that doesn't depend on how the step is split into micro-batches and workers.

All but three of TRL's DPO losses are means over pairs, of which every micro-batch has the same number. `sft` is a mean over the
tokens of the chosen answers. TRL takes that mean per micro-batch, which gives a token more weight in a micro-batch with fewer
tokens; this trainer takes it over the step. `aot` and `aot_unpaired` sort the pairs of a micro-batch; lib/stage/limits.py refuses them
unless the micro-batch is the whole step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from trl import DPOTrainer

from lib.methods.heldout import counts


class WholeStepTrainer(DPOTrainer, ABC):
    """TRL's DPOTrainer, which also counts the chosen tokens of the step, or of all held-out rows, if `by_chosen_token` is true."""

    chosen_per_pair: float | None = None
    """Mean number of chosen tokens per pair, over the current step or all held-out rows. None: not counted; use the batch's own."""

    @property
    @abstractmethod
    def by_chosen_token(self) -> bool:
        """Whether the loss has a term that is a mean over the tokens of the chosen answers."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.by_chosen_token and batches:
            self.chosen_per_pair = self._per_pair(batches, device)
        return batches, items

    def evaluation_loop(self, dataloader, *args, **kwargs):
        before = self.chosen_per_pair
        if self.by_chosen_token and len(dataloader.dataset):
            self.chosen_per_pair = self._per_pair(self.data_collator([row]) for row in dataloader.dataset)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.chosen_per_pair = before

    def _per_pair(self, batches, device=None) -> float:
        """Returns chosen tokens ÷ pairs of `batches`; given a device, summed over the workers, which hold different batches."""
        import torch

        counted = [counts(batch) for batch in batches]
        chosen, pairs = (sum(c[k] for c in counted) for k in ("chosen", "pairs"))
        if device is not None:
            both = torch.tensor([chosen, pairs], dtype=torch.float64, device=device)
            chosen, pairs = self.accelerator.reduce(both, "sum").tolist()
        return chosen / pairs


class WholeStepDPOTrainer(WholeStepTrainer):
    """TRL's DPOTrainer whose loss `sft` is −Σ log π(y⁺ₜ) ÷ (chosen tokens of the step, or of all held-out rows)."""

    @property
    def by_chosen_token(self) -> bool:
        return "sft" in self.loss_types

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        kinds, weights, here = self.loss_types, self.loss_weights, counts(inputs)
        if self.by_chosen_token and self.chosen_per_pair:
            share = here["chosen"] / here["pairs"] / self.chosen_per_pair
            both = zip(kinds, weights, strict=True)
            if share:
                self.loss_weights = [w * share if kind == "sft" else w for kind, w in both]
            else:  # a mean over no tokens is NaN, and weight 0 would not cancel it
                left = [(kind, w) for kind, w in both if kind != "sft"] or [("sigmoid", 0.0)]
                self.loss_types, self.loss_weights = zip(*left, strict=True)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.loss_types, self.loss_weights = kinds, weights
