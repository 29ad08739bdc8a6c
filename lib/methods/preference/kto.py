"""KTO with a loss over the whole optimizer step, independent of the micro-batch size and the number of workers.

The reference point z₀ estimates KL(π‖π_ref) from mismatched answers: each prompt with the answer of another row of the batch
(Ethayarajh et al. 2024, section 4.1). TRL pairs rows once, by their places in micro-batches of a fixed size, and averages over one
micro-batch of every worker, so the loss depends on micro_batch and the number of workers. It must also read rows in file order,
and it drops NaN losses. Here the paper's batch is the optimizer step:

    z₀ = max(0, mean over the rows i of the step of log π(y_j|x_i)/π_ref(y_j|x_i))        j: the next row of the step with another prompt

z₀ is computed without gradient before the first micro-batch. Rows can be drawn in any order. For held-out rows, the batch is the whole
held-out set.

Shapes: B rows of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import KTOTrainer
from trl.trainer.kto_config import KTOConfig  # by its module, where lib/config/trl_fields.py finds its fields

from lib.methods.heldout import Shards, log_means
from lib.methods.preference import losses

if TYPE_CHECKING:
    from torch import Tensor

Row = tuple[list[int], list[int]]
"""Tokens of a prompt and of its answer."""


@dataclass
class StepKTOConfig(KTOConfig):
    train_sampling_strategy: str = field(
        default="random", metadata={"help": "Order of the rows: random or sequential."}
    )


def mismatched(prompts: list) -> list[int]:
    """Returns for each row the index of the next row, cyclically, with another prompt; of the next row if all prompts are the same.

    [a, a, b] → [2, 2, 0]: the two answers of a preference pair share a prompt and so are no mismatch.
    """
    n, following = len(prompts), None
    found: list[int] = [0] * n
    for i in reversed(range(2 * n - 1)):  # twice around, because the last rows are matched with the first
        after = (i + 1) % n
        following = after if prompts[after] != prompts[i % n] else following
        found[i % n] = after if following is None else following
    return found


class WholeStepKTOTrainer(KTOTrainer):
    """TRL's KTOTrainer with z₀ computed over the whole step."""

    kl: float = 0.0
    """z₀ of the current step or of the held-out rows."""

    def __init__(self, args: StepKTOConfig, **kwargs):
        # With the name of the loss that has no z₀, TRL prepares no mismatched answers and accepts rows in any order.
        kind, args.loss_type = args.loss_type, "apo_zero_unpaired"
        super().__init__(args=args, **kwargs)
        self.loss_type = args.loss_type = kind

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        from accelerate.utils import gather_object

        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.loss_type == "kto" and batches:
            mine = [_rows(batch) for batch in batches]
            # gather_object orders by worker. The step's order is by micro-batch, as with a single worker.
            workers, rank = self.accelerator.num_processes, self.accelerator.process_index
            all_of = gather_object(mine)
            in_order = [all_of[w * len(mine) + k] for k in range(len(mine)) for w in range(workers)]
            starts = [sum(map(len, in_order[:n])) for n in range(len(in_order))]
            places = [range(s, s + len(rows)) for s, rows in zip(starts, in_order, strict=True)]
            step = [row for rows in in_order for row in rows]
            self.kl = self._kl(step, ((at, True) for at in places[rank::workers]))
        return batches, items

    def evaluation_loop(self, dataloader, *args, **kwargs):
        before, a = self.kl, self.args
        if self.loss_type == "kto" and len(dataloader.dataset):
            rows = [row for example in dataloader.dataset for row in _rows(self.data_collator([example]))]
            shards = Shards(len(rows), a.eval_batch_size, a.process_index, a.world_size)
            self.model_wrapped.eval()  # as the loop does; without it, dropout would be active here
            counted = shards.own if a.process_index else len(shards)
            self.kl = self._kl(rows, ((at, n < counted) for n, at in enumerate(shards)))
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.kl = before

    def _kl(self, rows: list[Row], mine: Iterable[tuple[Iterable[int], bool]]) -> float:
        """Returns z₀ of `rows`. mine: batches that this worker computes, as (row indices, whether they count)."""
        import torch

        other = mismatched([prompt for prompt, _ in rows])
        total, n = 0.0, 0
        for at, counted in mine:
            crossed = [{"prompt_ids": rows[i][0], "completion_ids": rows[other[i]][1], "label": True} for i in at]
            batch = self._prepare_inputs(self.data_collator(crossed))
            with torch.no_grad(), self.compute_loss_context_manager():
                policy_B, _ = self._logps(self.model_wrapped, batch)
                ratio_B = policy_B - self._reference_logps(batch)
            if counted:
                total, n = total + ratio_B.double().sum().item(), n + len(crossed)
        both = torch.tensor([total, n], dtype=torch.float64, device=self.args.device)
        total, n = self.accelerator.reduce(both, "sum").tolist()
        return max(0.0, total / n)

    def _logps(self, model, batch: dict) -> tuple[Tensor, object]:
        """Returns (log π of the answers (B,), the model's outputs)."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        at = {k: batch[k] for k in ("input_ids", "attention_mask")}
        if self.aux_loss_enabled:
            at["output_router_logits"] = True
        outputs = model(**at, labels=labels, use_cache=False, fused_lm_head=True)
        return outputs.log_probs[:, 1 - labels.size(1) :].sum(1), outputs

    def _reference_logps(self, batch: dict) -> Tensor:
        """Returns log π_ref of the answers (B,), from the frozen copy or from the base with the adapter disabled."""
        import torch

        if "ref_logps" in batch:
            return batch["ref_logps"]
        off = nullcontext() if self.ref_model else self.accelerator.unwrap_model(self.model).disable_adapter()
        with torch.no_grad(), off:
            return self._logps(self.ref_model or self.model, batch)[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        import torch

        wanted_B = inputs["label"].bool()
        logp_B, outputs = self._logps(model, inputs)
        ratio_B = logp_B - self._reference_logps(inputs)
        kl = (
            self.kl if self.loss_type == "kto" else 0.0
        )  # apo_zero_unpaired (D'Oosterlinck et al. 2024) is KTO with z₀ = 0
        loss = losses.kto(ratio_B, wanted_B, kl, self.beta, self.desirable_weight, self.undesirable_weight).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            mask = inputs["completion_mask"][:, 1:]
            sums = {
                "kl": torch.tensor(kl * len(wanted_B)),
                "entropy": (outputs.entropy[:, -mask.size(1) :] * mask).sum(),
            }
            for side, at_B in (("chosen", wanted_B), ("rejected", ~wanted_B)):
                sums[f"rewards/{side}"] = self.beta * ratio_B[at_B].sum()
                sums[f"logps/{side}"] = logp_B[at_B].sum()
        log_means(self, sums, inputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        metrics = self._metrics["train" if self.model.training else "eval"]
        if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            chosen, rejected = (metrics[f"rewards/{side}"] for side in ("chosen", "rejected"))
            metrics["rewards/margins"] = [sum(chosen) / len(chosen) - sum(rejected) / len(rejected)]
        super().log(logs, start_time)


def _rows(batch: dict) -> list[Row]:
    """Returns the rows of a collated batch, without padding."""
    ids, real, answer = (batch[k].tolist() for k in ("input_ids", "attention_mask", "completion_mask"))
    marked = (list(zip(*row, strict=True)) for row in zip(ids, real, answer, strict=True))
    return [([t for t, r, a in row if r and not a], [t for t, r, a in row if a]) for row in marked]
