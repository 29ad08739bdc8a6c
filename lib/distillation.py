"""Distillation on a dataset: the student learns the teacher's distribution over the next token, and the token itself.

    L = Σ_t α · [−log p_S(y_t)] + (1 − α) · T² · D(p_T^(T)(· | y_<t), p_S^(T)(· | y_<t)),        p^(T) = softmax(z / T)
    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; T² keeps the soft gradients' size whatever T is.

D: forward KL(p_T‖p_S), reverse KL(p_S‖p_T), or the generalised Jensen–Shannon divergence (Agarwal et al. 2024,
https://arxiv.org/abs/2306.13649, eq. 1), which lies between them. Where the teacher's distributions come from: lib/teacher.py; its
tokens must be the student's.

Shapes: N labelled positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trl import SFTTrainer
from trl.trainer.sft_config import SFTConfig  # by its module, where lib/fields.py finds its fields

from lib import on_policy
from lib.prune import cut
from lib.teacher import Said, Teacher, grouped_as, labelled, logits, width


@dataclass
class DistillConfig(SFTConfig):
    teacher: str | None = field(
        default=None,
        metadata={"help": "The model to learn from: a run, a folder that from_pretrained loads, or a hub name."},
    )
    keep_layers: int | None = field(
        default=None,
        metadata={"help": "Make the student of the base by keeping this many of its layers, evenly spaced. None: all."},
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = field(
        default="forward_kl", metadata={"help": "D: KL from teacher to student, from student to teacher, or between."}
    )
    jsd_beta: float = field(
        default=0.5, metadata={"help": "Weight of the teacher in jsd's mixture, above 0 and below 1."}
    )
    hard_weight: float = field(default=0.1, metadata={"help": "α: share of the loss on the tokens themselves, 0 to 1."})
    soft_temperature: float = field(
        default=1.0, metadata={"help": "T: above 1 the teacher's less likely tokens count more."}
    )
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep the teacher's so many likeliest tokens and the rest as one: worked out before training, once, or "
            "asked of a served teacher. None: the teacher stands beside the student, and every token counts."
        },
    )
    keep: str | None = field(
        default=None,
        metadata={"help": "Folder or s3:// address for what the teacher said, for other jobs too. None: in the run."},
    )
    answers: Literal["data", "teacher"] = field(
        default="data",
        metadata={
            "help": "Whose answers the student learns: the data's, or those that the teacher writes to the data's prompts "
            "(sequence-level distillation, Kim and Rush 2016). Unfinished ones are left out."
        },
    )
    on_policy: float = field(
        default=0.0,
        metadata={
            "help": "λ: share of batches, 0 to 1, whose answers the student writes itself, the teacher scoring them (GKD, "
            "Agarwal et al. 2024)."
        },
    )
    answer_tokens: int = field(default=64, metadata={"help": "Longest answer that teacher or student writes."})
    answer_temperature: float = field(
        default=0.0, metadata={"help": "Of the teacher's answers; 0: greedy. The student draws at 1."}
    )


class DistillTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss above. teach: makes the teacher (lib/teacher.py) of this trainer, whose rows are tokens
    by then; None where only tokens are learnt."""

    def __init__(self, *args, teach: Callable[[DistillTrainer], Teacher | None], **kwargs):
        super().__init__(*args, **kwargs)
        self.collate = self.data_collator
        # What the teacher speaks of: rows that pad the vocabulary are no tokens.
        self.tokens = width(self.processing_class)
        self.teacher = teach(self)

        def asking(rows):
            batch = self.collate(rows)
            self.teacher.ahead(batch)
            return batch

        if self.teacher:
            self.data_collator = asking  # the batch after the one at work is collated already

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        import torch

        a = self.args
        at = labelled(inputs)
        count = at.sum().clamp(min=1)
        own = model.training and on_policy.drawn(a, self.state.global_step, inputs)
        if own:
            inputs = on_policy.answered(self, model, inputs)
            at = labelled(inputs)
        student_NV, outputs = logits(model, {k: v for k, v in inputs.items() if k != "labels"}, at)
        hard_N = torch.nn.functional.cross_entropy(student_NV, inputs["labels"][:, 1:][at], reduction="none")
        soft_N, outside = 0 * hard_N, None
        if self.teacher:
            soft_N, outside = soft_loss(self.teacher.about(inputs), student_NV[:, : self.tokens], a)
        n = max(1, len(hard_N))  # none where every text of the batch is one token
        said = {"hard_loss": hard_N.sum(), "soft_loss": soft_N.sum()}
        if outside is not None:
            said["teacher_outside"] = torch.as_tensor(outside * n, device=hard_N.device)
        sums = torch.stack(
            [*(v.detach().double() for v in said.values()), torch.tensor(n, device=hard_N.device).double()]
        )
        *sums, of = self.accelerator.reduce(sums, "sum").tolist()  # of all workers
        for name, value in zip(said, sums, strict=True):
            self._metrics["train" if model.training else "eval"][name].append(value / of)
        hard = 0.0 if own else a.hard_weight  # its own tokens are no example to a student
        # A batch weighs what its labelled tokens in the data do.
        loss = (hard * hard_N + (1 - hard) * soft_N).sum() / n * count
        all_of_step = count if num_items_in_batch is None else num_items_in_batch
        loss = loss / max(1, all_of_step)
        if a.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which DDP's mean of the gradients takes back
        return (loss, outputs) if return_outputs else loss


def soft_loss(said: Said, student_NV, args: DistillConfig):
    """(T² · D at each place (N,), share of the teacher's mass outside its kept tokens or None). V: the tokens that both know."""
    student_NV, outside = student_NV / args.soft_temperature, None
    if said.tokens_NK is not None:
        logp = grouped_as(student_NV, said.tokens_NK)
        outside = said.logp_NK[:, -1].exp().sum().item() / max(1, len(student_NV))
    else:
        logp = student_NV.log_softmax(-1)
    loss_N = divergence(said.logp_NK, logp, args.divergence, args.jsd_beta)
    return args.soft_temperature**2 * loss_N, outside


def divergence(p_NV, q_NV, kind: str, beta: float = 0.5):
    """(N,) in nats, of log-probabilities (N, V): the teacher's p and the student's q."""
    import torch

    if kind == "forward_kl":
        return (p_NV.exp() * (p_NV - q_NV)).sum(-1)
    if kind == "reverse_kl":
        return (q_NV.exp() * (q_NV - p_NV)).sum(-1)
    mixed_NV = torch.logsumexp(torch.stack([p_NV + math.log(beta), q_NV + math.log(1 - beta)]), 0)
    return beta * (p_NV.exp() * (p_NV - mixed_NV)).sum(-1) + (1 - beta) * (q_NV.exp() * (q_NV - mixed_NV)).sum(-1)


def vocabulary(tokenizer) -> str:
    """SHA-256 of the tokens and their ids."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def made_smaller(where: str, args: DistillConfig):
    """The student made of the base in folder `where`; args.model_init_kwargs, which only a name takes, are used up."""
    from transformers import AutoModelForCausalLM

    kwargs, args.model_init_kwargs = args.model_init_kwargs, None
    return keep_layers(AutoModelForCausalLM.from_pretrained(where, **kwargs), args.keep_layers)


def keep_layers(model, count: int):
    """The model with `count` of its decoder layers, the first and the last among them, evenly spaced (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, take every second). Raises ValueError where that can't be."""
    there = len(model.model.layers)
    if not 2 <= count <= there:
        raise ValueError(f"train.keep_layers: must be from 2 to {there}, the base's layers, is {count}.")
    return cut.layers(model, [round(i * (there - 1) / (count - 1)) for i in range(count)])
