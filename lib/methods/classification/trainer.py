"""transformers' Trainer with the loss of a classifier or a regression, as a sum over the whole optimizer step.

    classes   − log softmax(z)_y        Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.1
    scores    (z − y)²                  the same for STS-B, whose scores aren't scaled

Both are means over the rows of a step, whatever its micro-batches and workers. Shapes: B rows, T tokens, C classes (1 for scores).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lib.methods.dropout import RowDropout
from lib.methods.whole_step import WholeStepTrainer

KEYS = "dropout_keys"
"""Name of the rows' keys of dropout in a batch."""


def losses(logits_BC: Tensor, wanted_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns (the sum of the rows' losses, the number of rows whose most likely class is right; None for scores). wanted_B: indices of
    classes, or scores if they are floats."""
    if wanted_B.is_floating_point():
        return ((logits_BC.float()[:, 0] - wanted_B) ** 2).sum(), None
    loss = functional.cross_entropy(logits_BC.float(), wanted_B, reduction="sum")
    return loss, (logits_BC.argmax(1) == wanted_B).sum()


class ClassifyTrainer(WholeStepTrainer):
    def counts(self, inputs: dict) -> dict[str, int]:
        return {"rows": len(inputs["wanted"])}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        read = {name: value for name, value in inputs.items() if name not in ("wanted", KEYS)}
        with RowDropout(inputs[KEYS]):
            total, right = losses(model(**read).logits, inputs["wanted"])
        rows = len(inputs["wanted"])
        if right is not None:
            self.log_means("train" if model.training else "eval", {"accuracy": (float(right), rows)})
        loss = total / rows
        if num_items_in_batch is not None and model.training:
            # DDP averages the gradients of the workers, which cancels num_processes.
            loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss
