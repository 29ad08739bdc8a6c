"""Memory on each device while a job trains, by purpose, computed from the model's sizes (anatomy.py).

Weights, gradients and optimizer under ZeRO follow Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054, section 5 and
figure 1), adapted to this project's settings: all weights train in float32 under autocast, so a trained weight takes 4 bytes, its
gradient 4, and Adam K = 8; an adapter's frozen base has no gradients and no Adam state. With gradient checkpointing each layer
saves its input, and one layer at a time is recomputed (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 5).

The peak is the larger of two moments: `backward`, when all activations are saved and the loss holds its logits, and `step`, when
all gradients exist and no activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.estimate.anatomy import Anatomy

STATES = {
    "adamw_torch": 2.0, "adamw_torch_fused": 2.0, "adamw_torch_8bit": 0.5, "adamw_bnb_8bit": 0.5, "adamw_8bit": 0.5, "adafactor": 0.0, "sgd": 0.0,
    "adagrad": 1.0, "rmsprop": 1.0, "lion_32bit": 1.0, "lion_8bit": 0.25, "paged_adamw_32bit": 2.0, "paged_adamw_8bit": 0.5,
}  # fmt: skip
"""train.optim → float32 numbers kept per trained weight; an unlisted optimizer counts like AdamW."""

DISTILLED = 11 * 4
"""Bytes per logit of distillation: student's and teacher's logits, their logarithms, probabilities and gradients, in float32."""
PRETRAINED = 3 * 4
"""Bytes per logit of pre-training: logits, their logarithms and gradients, in float32."""

TILE = 32768
"""Columns of the vocabulary that TRL projects at a time (_CHUNKED_LOGPROB_CHUNK_SIZE), for at most ROWS positions."""
ROWS = 4096

HOLES = {True: 1.65, False: 1.2}
"""CPU: {with an adapter: heap bytes per saved byte}. glibc can't reuse the gaps that a forward pass's temporaries leave, and PEFT
creates more of them. Measured on SmolLM2-135M (adapter 1.59 to 1.77, none 1.13 to 1.27; 2 to 8 sequences of 91 or 256 tokens)."""
FILLED = 0.6
"""CPU: share of the gradients that doesn't fit into those gaps. Measured likewise."""
PYTHON = 826 << 20
"""Bytes of a worker before its model is loaded: Python, torch, Ray, transformers, TRL, PEFT and their libraries' code. Measured."""
CONTEXT = 600 << 20
"""GPU: bytes of CUDA's context, kernels and cuBLAS workspaces, which torch doesn't count. Not measured here."""
SLACK = 1.08
"""GPU: bytes reserved by torch's allocator per byte in use. Assumed."""

BUCKET = 500_000_000
"""DeepSpeed's defaults: numbers in a reduce bucket (there are two with overlap), and half of those that ZeRO-3 keeps gathered."""


@dataclass(frozen=True)
class Setting:
    """How the model is trained on each device."""

    gpu: bool
    precision: str
    strategy: str = "ddp"
    workers: int = 1
    offload: bool = False
    sequences: int = 1
    """B: micro_batch × sequences per example."""
    labelled: int = 0
    """Maximum positions of a micro-batch at which a loss is computed."""
    accumulates: bool = False
    """More than one micro-batch per step, so gradients already exist when the second one begins."""
    checkpointing: bool = False
    optimizer: str = "adamw_torch_fused"
    logit_bytes: int = 0
    """Bytes for each labelled position and token of the vocabulary, if all logits exist at once; 0: only one tile of them does."""
    reference: int = 0
    """Bytes of a frozen copy of the base (DPO without an adapter)."""
    teacher: int = 0
    """Bytes of a teacher's weights beside the student."""
    reread: int = 0
    """Bytes of the base's weight files, mapped once more at the end to merge an adapter."""


@dataclass(frozen=True)
class Footprint:
    parts: dict[str, int] = field(default_factory=dict)
    """Purpose → bytes at the peak."""
    moment: str = "backward"

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def counted(self) -> int:
        """Bytes comparable to peak_memory_bytes in provenance.json: on a GPU torch's own count, without context and slack."""
        return self.total - self.parts.get("context", 0) - self.parts.get("slack", 0)


def footprint(a: Anatomy, s: Setting) -> Footprint:
    """Returns the memory of one worker."""
    held = _held(a, s)
    saved, loss = _saved(a, s), _loss(a, s)
    gradients = _gradients(a, s)
    head = a.head * 4 if a.head_trains and s.strategy not in ("fsdp", "zero3") else 0
    early = gradients if s.accumulates else min(head, gradients)
    if not s.gpu:
        holes = HOLES[bool(a.adapter)]
        inside = {
            "activations": round(saved * holes),
            "logits": round(loss * holes),
            "gradients": max(early, round(gradients * FILLED)),
        }
        step = {"gradients": gradients}
        fixed = {"process": PYTHON} | ({"file of the base": s.reread} if s.reread else {})
    else:
        inside = {"activations": saved, "logits": loss, "gradients": early}
        step = {"gradients": gradients}
        fixed = {}
    moment, parts = max((("backward", inside), ("step", step)), key=lambda m: sum(m[1].values()))
    parts = {k: v for k, v in (held | parts).items() if v}
    if s.gpu:
        fixed = {"slack": round(sum(parts.values()) * (SLACK - 1)), "context": CONTEXT}
    return Footprint(parts | fixed, moment)


def _held(a: Anatomy, s: Setting) -> dict[str, int]:
    """Returns the bytes that stay allocated from step to step, by purpose."""
    n, wide = s.workers, a.trainable * 4
    states = round(STATES.get(s.optimizer, 2.0) * (a.trainable_bytes if s.strategy in ("ddp", "fsdp") else wide))
    zero, half = s.strategy.startswith("zero"), s.precision != "fp32"
    weights, master, exchange = a.weight_bytes, 0, 0
    if zero:
        if half:  # DeepSpeed keeps 16-bit weights, and float32 copies in its optimizer
            weights -= a.trainable_bytes - a.trainable * 2
        master = wide // n
        exchange = BUCKET * (2 if half else 4) * 2 if s.gpu else 0
        states //= n
        if s.strategy == "zero3":
            gathered = min(a.parameters, 2 * BUCKET) * (2 if half else 4)
            weights, exchange = weights // n, exchange + gathered
    elif s.strategy == "fsdp":
        weights, states = weights // n, states // n
        exchange = (2 * a.largest + 2 * a.head) * (2 if half else 4)
    else:
        exchange = a.trainable_bytes  # DDP's buckets, besides the gradients; Ray Train uses DDP for one worker too
    if s.offload and s.gpu:
        states = master = 0
        weights = 0 if s.strategy in ("zero3", "fsdp") else weights
    shared = n if s.strategy in ("zero3", "fsdp") else 1
    return {
        "weights": weights + master,
        "optimizer": states,
        "exchange": exchange,
        "reference": s.reference // shared,
        "teacher": s.teacher,
    }


def _gradients(a: Anatomy, s: Setting) -> int:
    bytes_ = a.trainable * 2 if s.strategy.startswith("zero") and s.precision != "fp32" else a.trainable_bytes
    return bytes_ // s.workers if s.strategy in ("zero2", "zero3", "fsdp") else bytes_


def _saved(a: Anatomy, s: Setting) -> int:
    everything = a.copies + s.sequences * a.sequence
    if not s.checkpointing:
        return everything
    wide = 4 if s.precision == "fp32" else 2
    return a.layers * s.sequences * a.tokens * a.hidden * wide + everything // a.layers


def _loss(a: Anatomy, s: Setting) -> int:
    if not a.head:
        return 0
    if s.logit_bytes:
        return s.logit_bytes * s.labelled * a.vocabulary
    tile = min(s.labelled, ROWS) * min(TILE, a.vocabulary)
    columns = min(TILE, a.vocabulary) * a.hidden
    half = s.precision != "fp32"
    own = a.head * 4 if a.head_trains else 0  # its gradient, before it is added to the accumulated one
    if s.gpu:  # one tile in the compute type, overwritten in place by a kernel; and float32 weights cast to that type
        return tile * (2 if half else 4) + columns * (2 if half and a.head_trains else 0) + own
    return tile * (7 * 4 + (2 if half else 4)) + columns * (4 if half else 0) + own
