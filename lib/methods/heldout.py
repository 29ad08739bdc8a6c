"""The held-out loss: total loss in nats of all held-out rows ÷ their tokens (SFT, distillation), pairs (DPO, reward) or answers (KTO).

transformers averages the batches' means, giving a smaller last batch the weight of a full one, and repeats rows until all workers
have equally many; the result depends on the batch size. Here each row counts once, and each batch is weighted by its number of
tokens, pairs or answers, so the loss depends on neither scale.micro_batch nor the number of workers.

TRL's other metrics (token accuracy, entropy, rewards, margins) are means of micro-batch means too, in training as well; they are
weighted in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib.methods.distillation.teacher import labelled

if TYPE_CHECKING:
    from transformers import Trainer


class Shards:
    """Batch sampler of this worker's share of the held-out rows: every `workers`-th row.

    The remaining rows (fewer than there are workers) are computed by every worker, because with sharded weights all workers must
    run the same number of passes. `own`: number of batches before those.
    """

    def __init__(self, rows: int, batch: int, worker: int, workers: int):
        shared = rows - rows % workers
        parts = range(worker, shared, workers), range(shared, rows)
        cut = [[list(part[at : at + batch]) for at in range(0, len(part), batch)] for part in parts]
        self.batches, self.own = cut[0] + cut[1], len(cut[0])

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def counts(inputs: dict) -> dict[str, int]:
    """Counts the contents of a batch as made by TRL's collators. The first key is what the loss is a mean over.

    Chat and text rows: tokens. Preference pairs: pairs, and for DPO also the tokens of both answers, of the chosen and of the
    rejected ones (tokens, chosen, rejected). Labelled answers: answers, desirable, undesirable, tokens. Only predicted tokens with
    a label are counted.
    """
    if "labels" in inputs:
        return {"tokens": int(labelled(inputs).sum())}
    if "label" in inputs:
        answers, desirable = len(inputs["label"]), int(inputs["label"].sum())
        tokens = int(inputs["completion_mask"][:, 1:].sum())
        return {"answers": answers, "desirable": desirable, "undesirable": answers - desirable, "tokens": tokens}
    pairs = len(inputs["input_ids"]) // 2
    if "completion_mask" not in inputs:
        return {"pairs": pairs}
    chosen, rejected = (int(half.sum()) for half in inputs["completion_mask"][:, 1:].split(pairs))
    return {"pairs": pairs, "tokens": chosen + rejected, "chosen": chosen, "rejected": rejected}


def unit(metric: str, held: dict[str, int]) -> str:
    """Returns the key of counts() that a TRL metric is a mean over."""
    if "answers" in held:
        side = {"chosen": "desirable", "rejected": "undesirable"}.get(metric.rpartition("/")[2], "answers")
        return "tokens" if metric == "entropy" else side
    if "rows" in held:
        return "rows"
    if "pairs" not in held:
        return "tokens"
    by_token = {
        "entropy": "tokens",
        "mean_token_accuracy": "chosen",
        "nll_loss": "chosen",
        "logits/chosen": "chosen",
        "logits/rejected": "rejected",
    }
    return by_token.get(metric, "pairs")


def log_means(trainer, sums: dict, inputs: dict) -> None:
    """Adds metrics to the trainer's `_metrics`. sums: {metric: sum over the micro-batch}; each becomes a mean per unit() over all
    workers."""
    import torch

    held, mode = counts(inputs), "train" if trainer.model.training else "eval"
    mine = torch.tensor([*map(float, sums.values()), *held.values()], dtype=torch.float64, device=trainer.args.device)
    of_all = trainer.accelerator.reduce(mine, "sum").tolist()
    weights = dict(zip(held, of_all[len(sums) :], strict=True))
    for name, total in zip(sums, of_all, strict=False):
        if weight := weights[unit(name, held)]:
            trainer._metrics[mode][name].append(total / weight)


EXTREME = {"min_reward": min, "max_reward": max}
"""Metrics of TRL's RewardTrainer that are extremes over the rows, not means."""


class Heldout:
    """Replaces a trainer's evaluation dataloader, loss and evaluation loop, to weight the held-out loss and TRL's metrics as described.

    TRL's trainers keep the values to log in `_metrics`; tests/methods/test_heldout.py checks that.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.shards = trainer, None
        self.counts = getattr(trainer, "counts", counts)
        self.sums: dict[tuple[str, str], tuple[float, float]] = {}
        """{("train" or "eval", metric): (weighted sum, total weight) since it was last logged}"""
        self.batch, self.nats, self.of = 0, 0.0, 0
        self.batches: list[tuple[float, int]] = []
        """Of the last evaluation: (sum of the loss, number of tokens, pairs or answers) of each batch, over all workers. The batches of two
        runs with equal scale.micro_batch and workers have the same rows."""
        self._loader, self._loss, self._loop = (
            trainer.get_eval_dataloader,
            trainer.compute_loss,
            trainer.evaluation_loop,
        )
        trainer.get_eval_dataloader, trainer.compute_loss = self.loader, self.loss
        trainer.evaluation_loop = self.loop

    def loader(self, eval_dataset=None):
        from accelerate.data_loader import DataLoaderShard

        found, args = self._loader(eval_dataset), self.trainer.args
        self.shards = Shards(len(found.dataset), args.eval_batch_size, args.process_index, args.world_size)
        return DataLoaderShard(
            found.dataset,
            device=args.device,
            batch_sampler=self.shards,
            collate_fn=found.collate_fn,
            num_workers=found.num_workers,
            pin_memory=found.pin_memory,
        )

    def loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        self.batch, self.nats, self.of, self.batches = 0, 0.0, 0, []
        found = self._loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        from accelerate.utils import gather_object

        nats, of = self._all([self.nats, self.of])
        self.batches = getattr(self.trainer, "heldout_rows", None) or gather_object(self.batches)
        if of:
            found.metrics[f"{metric_key_prefix}_loss"] = nats / of
        return found

    def loss(self, model, inputs, *args, **kwargs):
        mode = "train" if self.trainer.model.training else "eval"
        held, metrics = self.counts(inputs), self.trainer._metrics[mode]
        if mode == "eval":
            again = self.shards is not None and self.batch >= self.shards.own and self.trainer.args.process_index > 0
            held, self.batch = {k: 0 for k in held} if again else held, self.batch + 1
        before = {name: len(values) for name, values in metrics.items()}
        out = self._loss(model, inputs, *args, **kwargs)
        if mode == "eval":
            n = next(iter(held.values()))
            mean = float((out[0] if isinstance(out, tuple) else out).detach())
            self.nats, self.of = self.nats + (mean * n if n else 0.0), self.of + n
            self.batches += [(mean * n, n)] if n else []
        of_all = dict(zip(held, self._all(list(held.values())), strict=True))
        for name, values in metrics.items():
            if len(values) > before.get(name, 0):
                self._weigh(mode, name, values, of_all[unit(name, held)], before.get(name, 0) > 0)
        return out

    def _weigh(self, mode: str, name: str, values: list[float], weight: float, more: bool) -> None:
        """Reduces `values`, which TRL will average, to one weighted mean. more: whether `values` already held an earlier mean."""
        if name in EXTREME:
            values[:] = [EXTREME[name](values)]
            return
        total, weights = self.sums[mode, name] if more else (0.0, 0.0)
        self.sums[mode, name] = total, weights = total + values[-1] * weight, weights + weight
        values[:] = [total / weights if weights else values[-1]]

    def _all(self, numbers: list[float]) -> list[float]:
        """Returns the sums of `numbers` over the workers."""
        import torch

        mine = torch.tensor(numbers, dtype=torch.float64, device=self.trainer.args.device)
        return self.trainer.accelerator.reduce(mine, "sum").tolist()
