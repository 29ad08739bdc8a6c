"""DPO whose loss is one of the whole step, however it is cut into micro-batches and shared out.

All losses of TRL's but three are means over pairs, and micro-batches have equally many. `sft` is a mean over the tokens of the chosen
answers, which TRL takes of each micro-batch: a token weighed more where the others beside it were few. `aot` and `aot_unpaired` sort
the pairs of a micro-batch, and lib/limits.py refuses them where that isn't the step.
"""

from __future__ import annotations

from trl import DPOTrainer

from lib.heldout import counts


class WholeStepTrainer(DPOTrainer):
    """TRL's DPOTrainer, which counts the chosen tokens of the step, or of all held-out rows, where `by_chosen_token` is true."""

    chosen_per_pair: float | None = None
    """Mean number of chosen tokens, over the step or the held-out rows at work. None: a batch stands for itself."""

    @property
    def by_chosen_token(self) -> bool:
        """Whether a part of the loss is a mean over the tokens of the chosen answers."""
        raise NotImplementedError

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
        """device: where the workers have other batches each, which are summed."""
        import torch

        held = [counts(batch) for batch in batches]
        chosen, pairs = (sum(h[k] for h in held) for k in ("chosen", "pairs"))
        if device is not None:
            both = torch.tensor([chosen, pairs], dtype=torch.float64, device=device)
            chosen, pairs = self.accelerator.reduce(both, "sum").tolist()
        return chosen / pairs


class WholeStepDPOTrainer(WholeStepTrainer):
    """TRL's DPOTrainer with −Σ log π(y⁺ₜ) ÷ (chosen tokens of the step) as the loss `sft`; of held-out rows: of all of them."""

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
            else:  # the mean over no token would be NaN, also times 0
                left = [(kind, w) for kind, w in both if kind != "sft"] or [("sigmoid", 0.0)]
                self.loss_types, self.loss_weights = zip(*left, strict=True)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.loss_types, self.loss_weights = kinds, weights
