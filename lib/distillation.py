"""Distillation on a dataset: the student learns the teacher's distribution over the next token, and the token itself.

    L = Σ_t α · [−log p_S(y_t)] + (1 − α) · T² · D(p_T^(T)(· | y_<t), p_S^(T)(· | y_<t)),        p^(T) = softmax(z / T)
    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; T² keeps the soft gradients' size whatever T is.

D: forward KL(p_T‖p_S), reverse KL(p_S‖p_T), or the generalised Jensen–Shannon divergence (Agarwal et al. 2024,
https://arxiv.org/abs/2306.13649, eq. 1), which lies between them. The teacher is read whole on every worker; its tokens must
be the student's.

Shapes: N labelled positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import SFTTrainer
from trl.trainer.sft_config import SFTConfig  # by its module, where lib/fields.py finds its fields


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


class DistillTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss above. teacher: a causal language model, which is moved to the student's device."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        import torch

        a = self.args
        labels = inputs["labels"][:, 1:]
        at = labels != -100
        asked = {k: v for k, v in inputs.items() if k != "labels"} | {"use_cache": False}
        outputs = model(**asked)
        student_NV = outputs.logits[:, :-1][at].float()
        with torch.no_grad():
            teacher_NV = self.teacher(**asked).logits[:, :-1][at].float()
        hard_N = torch.nn.functional.cross_entropy(student_NV, labels[at], reduction="none")
        soft_N = a.soft_temperature**2 * divergence(
            teacher_NV, student_NV, a.divergence, a.soft_temperature, a.jsd_beta
        )
        count = at.sum().clamp(min=1)
        for name, loss_N in (("hard_loss", hard_N), ("soft_loss", soft_N)):
            self._metrics["train" if model.training else "eval"][name].append((loss_N.sum() / count).item())
        loss = (a.hard_weight * hard_N + (1 - a.hard_weight) * soft_N).sum()
        loss = loss / (count if num_items_in_batch is None else num_items_in_batch)
        if a.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which DDP's mean of the gradients takes back
        return (loss, outputs) if return_outputs else loss


def divergence(teacher_NV, student_NV, kind: str, temperature: float = 1.0, beta: float = 0.5):
    """(N,) in nats, of logits (N, V), both divided by `temperature`."""
    import torch

    p_NV, q_NV = ((x / temperature).log_softmax(-1) for x in (teacher_NV, student_NV))
    if kind == "forward_kl":
        return (p_NV.exp() * (p_NV - q_NV)).sum(-1)
    if kind == "reverse_kl":
        return (q_NV.exp() * (q_NV - p_NV)).sum(-1)
    mixed_NV = torch.logsumexp(torch.stack([p_NV + math.log(beta), q_NV + math.log(1 - beta)]), 0)
    return beta * (p_NV.exp() * (p_NV - mixed_NV)).sum(-1) + (1 - beta) * (q_NV.exp() * (q_NV - mixed_NV)).sum(-1)


def check(args: DistillConfig) -> None:
    """Raises ValueError that names the key of `train`."""
    if not 0 <= args.hard_weight <= 1:
        raise ValueError(f"train.hard_weight: must be from 0 to 1, is {args.hard_weight}.")
    if args.soft_temperature <= 0:
        raise ValueError(f"train.soft_temperature: must be above 0, is {args.soft_temperature}.")
    if not 0 < args.jsd_beta < 1:
        raise ValueError(f"train.jsd_beta: must be above 0 and below 1, is {args.jsd_beta}.")


def keep_layers(model, count: int):
    """The model with `count` of its decoder layers, the first and the last among them, evenly spaced (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, take every second). Raises ValueError where that can't be."""
    from torch.nn import ModuleList

    layers, config = model.model.layers, model.config
    if not 2 <= count <= len(layers):
        raise ValueError(f"train.keep_layers: must be from 2 to {len(layers)}, the base's layers, is {count}.")
    kept = [round(i * (len(layers) - 1) / (count - 1)) for i in range(count)]
    model.model.layers = ModuleList(layers[i] for i in kept)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place  # its place in the cache
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    return model
