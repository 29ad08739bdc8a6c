"""Distillation on a dataset: the student learns the teacher's distribution over the next token, and the token itself.

    L = Σ_t α · [−log p_S(y_t)] + (1 − α) · T² · D(p_T^(T)(· | y_<t), p_S^(T)(· | y_<t)),        p^(T) = softmax(z / T)
    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; T² makes the size of the soft gradients independent of T.

D is the forward KL(p_T‖p_S), the reverse KL(p_S‖p_T), or the generalised Jensen–Shannon divergence (Agarwal et al. 2024,
https://arxiv.org/abs/2306.13649, eq. 1), which lies between them. lib/methods/distillation/teacher.py provides the teacher's distributions. Teacher
and student must have the same tokens.

Shapes: N labelled positions, V vocabulary, K tokens kept of the teacher's distribution.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trl import SFTTrainer
from trl.trainer.sft_config import SFTConfig  # by its module, where lib/config/trl_fields.py finds its fields

from lib.methods.distillation import on_policy
from lib.methods.distillation.teacher import Said, Teacher, grouped_as, labelled, logits, width
from lib.models import surgery


@dataclass
class DistillConfig(SFTConfig):
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "The model to learn from: a run, a folder that from_pretrained loads, a hub name, or serve:NAME for a Ray "
            "Serve application."
        },
    )
    keep_layers: int | None = field(
        default=None,
        metadata={"help": "Make the student from this many layers of the base, evenly spaced. None: all layers."},
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = field(
        default="forward_kl",
        metadata={"help": "D: KL(teacher‖student), KL(student‖teacher), or a Jensen–Shannon divergence between them."},
    )
    jsd_beta: float = field(
        default=0.5, metadata={"help": "Weight of the teacher in the mixture of jsd, above 0 and below 1."}
    )
    hard_weight: float = field(
        default=0.1, metadata={"help": "α: weight of the loss on the tokens themselves, 0 to 1."}
    )
    soft_temperature: float = field(
        default=1.0, metadata={"help": "T: above 1, the teacher's less likely tokens count more."}
    )
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "Reduce the teacher's distribution to this many most likely tokens and one for the rest. It is computed once, "
            "before training, or requested from a served teacher. None: the teacher runs beside the student, with all tokens."
        },
    )
    keep: str | None = field(
        default=None,
        metadata={
            "help": "Folder or s3:// address for the teacher's outputs, which other jobs can reuse. None: inside the run."
        },
    )
    answers: Literal["data", "teacher"] = field(
        default="data",
        metadata={
            "help": "Answers that the student learns: those in the data, or answers that the teacher generates to the data's prompts "
            "(sequence-level distillation, Kim and Rush 2016). Unfinished ones are left out."
        },
    )
    on_policy: float = field(
        default=0.0,
        metadata={
            "help": "λ: share of batches, 0 to 1, for which the student generates the answers and the teacher scores them (GKD, "
            "Agarwal et al. 2024)."
        },
    )
    answer_tokens: int = field(
        default=64, metadata={"help": "Maximum length of an answer that teacher or student generates, in tokens."}
    )
    answer_temperature: float = field(
        default=0.0,
        metadata={"help": "Sampling temperature of the teacher's answers. 0: greedy. The student always samples at 1."},
    )


class DistillTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss above.

    teach(trainer) returns the teacher (lib/methods/distillation/teacher.py), or None to train on tokens only; it is called when the rows are tokenized.
    """

    def __init__(self, *args, teach: Callable[[DistillTrainer], Teacher | None], **kwargs):
        super().__init__(*args, **kwargs)
        self.collate = self.data_collator
        # The teacher's distributions cover real tokens only; logits may have further columns that pad the vocabulary.
        self.tokens = width(self.processing_class)
        self.teacher = teach(self)

        def asking(rows):
            batch = self.collate(rows)
            self.teacher.ahead(batch)
            return batch

        if self.teacher:
            self.data_collator = asking  # the Trainer collates a batch ahead of its use

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
        n = max(1, len(hard_N))  # 0 labelled positions if every text of the batch is a single token
        logged = {"hard_loss": hard_N.sum(), "soft_loss": soft_N.sum()}
        if outside is not None:
            logged["teacher_outside"] = torch.as_tensor(outside * n, device=hard_N.device)
        sums = torch.stack(
            [*(v.detach().double() for v in logged.values()), torch.tensor(n, device=hard_N.device).double()]
        )
        *sums, of = self.accelerator.reduce(sums, "sum").tolist()  # over all workers
        for name, value in zip(logged, sums, strict=True):
            self._metrics["train" if model.training else "eval"][name].append(value / of)
        hard = 0.0 if own else a.hard_weight  # the student's own answers are no targets
        # A batch is weighted by its number of labelled tokens in the data.
        loss = (hard * hard_N + (1 - hard) * soft_N).sum() / n * count
        all_of_step = count if num_items_in_batch is None else num_items_in_batch
        loss = loss / max(1, all_of_step)
        if a.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients, which cancels this factor
        return (loss, outputs) if return_outputs else loss


def soft_loss(said: Said, student_NV, args: DistillConfig):
    """Returns (T² · D (N,), mean share of the teacher's probability outside its kept tokens, or None if all are kept).

    student_NV: logits, V being the tokens that both models have.
    """
    student_NV, outside = student_NV / args.soft_temperature, None
    if said.tokens_NK is not None:
        logp = grouped_as(student_NV, said.tokens_NK)
        outside = said.logp_NK[:, -1].exp().sum().item() / max(1, len(student_NV))
    else:
        logp = student_NV.log_softmax(-1)
    loss_N = divergence(said.logp_NK, logp, args.divergence, args.jsd_beta)
    return args.soft_temperature**2 * loss_N, outside


def divergence(p_NV, q_NV, kind: str, beta: float = 0.5):
    """Returns D (N,) in nats between log-probabilities (N, V): p of the teacher, q of the student. beta: weight of p in jsd."""
    import torch

    if kind == "forward_kl":
        return (p_NV.exp() * (p_NV - q_NV)).sum(-1)
    if kind == "reverse_kl":
        return (q_NV.exp() * (q_NV - p_NV)).sum(-1)
    mixed_NV = torch.logsumexp(torch.stack([p_NV + math.log(beta), q_NV + math.log(1 - beta)]), 0)
    return beta * (p_NV.exp() * (p_NV - mixed_NV)).sum(-1) + (1 - beta) * (q_NV.exp() * (q_NV - mixed_NV)).sum(-1)


def vocabulary(tokenizer) -> str:
    """Returns the SHA-256 of a tokenizer's tokens and their ids."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def made_smaller(where: str, args: DistillConfig):
    """Returns the student made from the base in folder `where`.

    Clears args.model_init_kwargs after use, because TRL applies them only to a model that it loads by name.
    """
    from transformers import AutoModelForCausalLM

    kwargs, args.model_init_kwargs = args.model_init_kwargs, None
    return keep_layers(AutoModelForCausalLM.from_pretrained(where, **kwargs), args.keep_layers)


def keep_layers(model, count: int):
    """Returns the model with `count` of its decoder layers, evenly spaced and including the first and the last.

    Sanh et al. 2019, https://arxiv.org/abs/1910.01108, keep every second layer. Raises ValueError unless 2 ≤ count ≤ all layers.
    """
    there = len(model.model.layers)
    if not 2 <= count <= there:
        raise ValueError(f"train.keep_layers: must be from 2 to {there}, the base's layers, is {count}.")
    return surgery.layers(model, [round(i * (there - 1) / (count - 1)) for i in range(count)])
