"""transformers' Trainer for proximal policy optimisation: a rollout, then num_iterations updates on its answers.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347; Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Huang et al. 2024,
https://arxiv.org/abs/2403.17031. Shapes are those of lib/methods/rl/experience.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from lib.distributed.collectives import gathered
from lib.methods.rl import advantages, experience, kl, ppo_losses, value_model
from lib.methods.rl.distinct import distinct
from lib.methods.rl.experience import Part
from lib.methods.rl.rewards import Rewards
from lib.methods.rl.rollouts import Rollout, Rollouts
from lib.methods.whole_step import WholeStepTrainer

FILE = "ppo.safetensors"
"""The value model's weights and the KL coefficient, in each checkpoint."""


class PPOTrainer(WholeStepTrainer):
    """model: the policy, with a value model (lib/methods/rl/value_model.py); ref_model: the reference; None: the policy without its adapter;
    rollouts, scored: how answers are drawn and rewarded. Batches of the dataloader are lists of rows."""

    packed = False

    def __init__(self, *, ref_model: Any, rollouts: Rollouts, scored: Rewards, **kwargs: Any):
        super().__init__(data_collator=lambda rows: rows, **kwargs)
        self.add_callback(SaveValue(self))
        self.ref_model, self.rollouts, self.rewards = ref_model, rollouts, scored
        self.cycle, self.kl_coef = self.args.num_iterations, self.args.kl_coef
        self.drawn: list[Rollout] = []
        """This worker's answers of the last rollout."""
        self.numbers: list[list[float | None]] = []
        """Their rewards."""
        self.parts: list[Part] = []
        self.micro_batches: list[dict] = []

    def counts(self, inputs: dict) -> dict[str, int]:
        return {"tokens": int(inputs["answer_mask"].sum())}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns (micro-batches of this worker, tokens of all answers), of a new rollout in the first step of a cycle."""
        rows, _ = Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)
        if self.state.global_step % self.cycle == 0:
            self._collect(rows)
        tokens = sum(self.counts(batch)["tokens"] for batch in self.micro_batches)
        return self.micro_batches, self.accelerator.reduce(torch.tensor(tokens, device=device), "sum").clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        part, a = self.parts[int(inputs["number"])], self.args
        logp_BS, values_BS, entropy_BS = self.read(model, inputs)
        assert part.advantages_BS is not None and part.returns_BS is not None
        policy, clipped = ppo_losses.surrogate(logp_BS, part.logp_BS, part.advantages_BS, part.mask_BS, a.cliprange)
        value, value_clipped = ppo_losses.value_loss(
            values_BS, part.values_BS, part.returns_BS, part.mask_BS, a.cliprange_value
        )
        tokens, moved_N = self.counts(inputs)["tokens"], (logp_BS - part.logp_BS)[part.mask_BS].detach()
        sums = {
            "policy_loss": policy, "value_loss": value, "clip_ratio": clipped, "value_clip_ratio": value_clipped,
            "entropy": entropy_BS[part.mask_BS].sum(), "approx_kl": kl.k3(torch.zeros_like(moved_N), -moved_N).sum(),
        }  # fmt: skip
        self.log_means("train", {name: (float(total.detach()), tokens) for name, total in sums.items()})
        # DDP averages the gradients of the workers, which cancels num_processes.
        return (policy + a.vf_coef * value) * self.accelerator.num_processes / num_items_in_batch

    def read(self, model, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (log π of the tokens, values, entropies), each (B, S) in float32. model: the policy, or its wrapper."""
        columns_S, _, tokens_BS = experience.places(batch)
        policy, seen = self.accelerator.unwrap_model(model), []
        # The states that the output layer reads, without those of all other layers and columns.
        hook = policy.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            logp_BS, entropy_BS = self._probabilities(model, batch, columns_S, tokens_BS)
        finally:
            hook.remove()
        return logp_BS, value_model.installed(policy)(seen[0], batch, columns_S), entropy_BS

    def _probabilities(self, model, batch: dict, columns_S: Tensor, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits_BSV = model(**asked, use_cache=False, logits_to_keep=columns_S).logits.float() / self.args.temperature
        logp_BSV = logits_BSV.log_softmax(-1)
        with torch.no_grad():
            entropy_BS = -(logp_BSV.exp() * logp_BSV).sum(-1)
        return logp_BSV.gather(-1, tokens_BS[..., None])[..., 0], entropy_BS

    def _collect(self, rows: list[list[dict]]) -> None:
        """Draws and rewards an answer to each row, and computes what the updates need."""
        flat, policy = [row for some in rows for row in some], self.accelerator.unwrap_model(self.model)
        self.drawn = self.rollouts.answers(
            [row["prompt"] for row in flat], self._occurrences(flat), self.state.global_step
        )
        self.numbers = self.rewards.score(flat, self.drawn)
        totals = [self.rewards.total(n) for n in self.numbers]
        self.parts, self.micro_batches, at, coef = [], [], 0, self.kl_coef
        for number, some in enumerate(rows):
            here = slice(at, at := at + len(some))
            kept = [total is not None for total in totals[here]]
            batch = experience.batch(
                self.drawn[here], kept, self.processing_class.pad_token_id, number, self.args.device
            )
            self.micro_batches.append(batch)
            self.parts.append(self._part(policy, batch))
        scores = torch.tensor([t or 0.0 for t in totals], device=self.args.device).split([len(some) for some in rows])
        rewards = [kl.token_rewards(p.kl_BS, s, p.mask_BS, coef) for p, s in zip(self.parts, scores, strict=True)]
        if self.args.whiten_rewards:
            rewards = self._white(rewards, shift_mean=False)
        raw = []
        for part, reward_BS in zip(self.parts, rewards, strict=True):
            found = advantages.gae(reward_BS, part.values_BS, part.mask_BS, self.args.gamma, self.args.lam)
            part.returns_BS = found[1]
            raw.append(found[0])
        for part, white_BS in zip(self.parts, self._white(raw), strict=True):
            part.advantages_BS = white_BS
        self._report(totals)

    def _occurrences(self, flat: list[dict]) -> list[int]:
        """Returns how many of the step's rows before each one, over all workers, have the same prompt: equal prompts get other answers."""
        from accelerate.utils import gather_object

        mine = [repr(row["prompt"]) for row in flat]
        before: Counter[str] = Counter()
        numbers = []
        everyone: Sequence[tuple[int, str]] = gather_object([(self.args.process_index, text) for text in mine])
        for rank, text in everyone:
            if rank == self.args.process_index:
                numbers.append(before[text])
            before[text] += 1
        return numbers

    def _part(self, policy, batch: dict) -> Part:
        columns_S, mask_BS, tokens_BS = experience.places(batch)
        reference = self.ref_model or policy
        with torch.no_grad(), self.compute_loss_context_manager():
            logp_BS, values_BS, _ = self.read(policy, batch)
            with nullcontext() if self.ref_model else policy.disable_adapter():
                ref_logp_BS, _ = self._probabilities(reference, batch, columns_S, tokens_BS)
        estimate = getattr(kl, self.args.kl_estimator)
        return Part(mask_BS, logp_BS, values_BS, estimate(logp_BS, ref_logp_BS).masked_fill(~mask_BS, 0))

    def _white(self, found: list[Tensor], shift_mean: bool = True) -> list[Tensor]:
        """Returns the tensors (B, S), whitened over the answers' tokens of all workers."""
        masks = [p.mask_BS for p in self.parts]
        flat_N = torch.cat([x_BS[mask_BS] for x_BS, mask_BS in zip(found, masks, strict=True)])
        white_N = advantages.whiten(flat_N, torch.ones_like(flat_N, dtype=torch.bool), self._total, shift_mean)
        apart = white_N.split([int(mask_BS.sum()) for mask_BS in masks])
        return [torch.zeros_like(x).masked_scatter(m, w) for x, m, w in zip(found, masks, apart, strict=True)]

    def _total(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum")

    def _report(self, totals: list[float | None]) -> None:
        """Keeps the rollout's metrics for the log, and adapts the KL coefficient."""
        kept = [t is not None for t in totals]
        returns_N = torch.cat([p.returns_BS[p.mask_BS] for p in self.parts if p.returns_BS is not None]).double()
        values_N = torch.cat([p.values_BS[p.mask_BS] for p in self.parts]).double()
        found = {
            "answers": len(totals), "kept": sum(kept), "reward": sum(t for t in totals if t is not None),
            "square": sum(t * t for t in totals if t is not None), "tokens": sum(len(r.answer) for r in self.drawn),
            "cut": sum(not r.finished for r in self.drawn), "kl": float(sum(p.kl_BS.sum() for p in self.parts)),
            "places": len(returns_N), "returns": float(returns_N.sum()), "errors": float((returns_N - values_N).sum()),
            **{name: sum(n[i] or 0.0 for n in self.numbers) for i, name in enumerate(self.rewards.names)},
        }  # fmt: skip
        summed = self._total(
            torch.tensor(list(map(float, found.values())), dtype=torch.float64, device=self.args.device)
        )
        all_ = dict(zip(found, summed.tolist(), strict=True))
        answers, n, places = all_["answers"], max(all_["kept"], 1.0), max(all_["places"], 1.0)
        spread = torch.stack(
            [
                ((x - all_[key] / places) ** 2).sum()
                for x, key in ((returns_N, "returns"), (returns_N - values_N, "errors"))
            ]
        )
        of_returns, of_errors = self._total(spread).tolist()
        means = {
            "reward": all_["reward"] / n,
            "reward_std": max(0.0, all_["square"] / n - (all_["reward"] / n) ** 2) ** 0.5,
            **{f"rewards/{name}/mean": all_[name] / n for name in self.rewards.names},
            "rewards/missing": 1 - all_["kept"] / answers, "completions/mean_length": all_["tokens"] / answers,
            "completions/clipped_ratio": all_["cut"] / answers, "kl": all_["kl"] / places, "kl_sequence": all_["kl"] / n,
            "kl_coef": self.kl_coef, "explained_variance": 1 - of_errors / of_returns if of_returns else 0.0,
        }  # fmt: skip
        everyone = [ids for some in gathered([r.answer for r in self.drawn]) for ids in some]
        if (different := distinct(everyone)) is not None:
            means["distinct_2"] = different
        for name, value in means.items():
            self._metrics["train"][name].append(value)
        if self.args.kl_target is not None:
            self.kl_coef = kl.adapted(
                self.kl_coef, all_["kl"] / n, int(answers), self.args.kl_target, self.args.kl_horizon
            )

    def create_optimizer(self, model=None):
        made = super().create_optimizer(model)
        if self.args.value_learning_rate is not None:
            own = {id(p): p for p in value_model.installed(self.accelerator.unwrap_model(self.model)).parameters()}
            for group in made.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            made.add_param_group(
                {"params": list(own.values()), "lr": self.args.value_learning_rate, "weight_decay": 0.0}
            )
        return made

    def save_model(self, output_dir=None, _internal_call=False):
        with value_model.removed(self.accelerator.unwrap_model(self.model)):
            super().save_model(output_dir, _internal_call)

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint:
            kept = load_file(Path(resume_from_checkpoint, FILE))
            self.kl_coef = kept.pop("kl_coef").item()
            value_model.installed(self.accelerator.unwrap_model(self.model)).load_state_dict(kept)
        return super().train(resume_from_checkpoint, **kwargs)


class SaveValue(TrainerCallback):
    """Writes FILE into each checkpoint, before lib/stage/run_callback.py seals it."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        trainer = self.trainer
        if args.process_index == 0:
            value = value_model.installed(trainer.accelerator.unwrap_model(trainer.model))
            kept = {name: w.detach().contiguous().cpu() for name, w in value.state_dict().items()}
            coef = torch.tensor(trainer.kl_coef, dtype=torch.float64)
            save_file(kept | {"kl_coef": coef}, Path(args.output_dir, f"checkpoint-{state.global_step}", FILE))
