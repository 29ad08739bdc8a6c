"""A job's demands on the devices that train it: memory in a given setting, number of tokens, operations per token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.estimate import throughput
from cluster.estimate.anatomy import Anatomy, Pretraining, described, study
from cluster.estimate.lengths import Lengths, measure
from cluster.estimate.memory import DISTILLED, PRETRAINED, Footprint, Setting, footprint
from lib.config import trl_fields
from lib.config.job import Job, Model
from lib.distributed import strategy
from lib.errors import UsageError, nearest
from lib.rendering.sequences import SPECIALS
from lib.runtime import hardware
from lib.stage.declared import stages
from lib.stage.stage import Stage


def stage(name: str) -> Stage:
    """Returns a stage by name. Raises UsageError if there is no such stage or it trains nothing."""
    known = stages()
    if name not in known:
        raise UsageError(
            f"--stage: {name} is not a stage that trains.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return known[name]


@dataclass
class Work:
    """job: as returned by lib/stage/plan.py; rows: number of training rows, None if they weren't counted."""

    job: Job
    stage: Stage
    rows: int | None
    lengths: Lengths = field(init=False)
    defaults: dict = field(init=False)

    def __post_init__(self):
        if self.stage.rewarded:
            raise UsageError(
                f"jobs/{self.stage.name}.py: its hours and dollars can't be estimated yet, since they depend on the lengths of answers that "
                "the model gives while it learns. Take a few steps on the machine (--train.max_steps 5), which show how long one takes. "
                "Rented machines keep to the budget all the same."
            )
        self.defaults = {key: f.default for key, f in trl_fields.read(self.stage.config).items()}
        self.lengths = measure(
            self.job, self.stage.rows, self.train("max_length") or 1024, self.train("objective"), self.embeds,
            self.job.makes == "classifier",
        )  # fmt: skip

    def train(self, key: str):
        """Returns a key of `train:`, or its default; None if the stage doesn't have it."""
        return self.job.train.get(key, self.defaults.get(key))

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is trained: its loss runs over a step's micro-batches twice, and reads one column at a time."""
        return self.job.makes == "encoder"

    @property
    def pairs(self) -> float:
        """Sequences per example: 2 for preference pairs and for texts that are compared with themselves, the texts of a contrastive row
        with the negatives that are found for it, else 1."""
        if self.embeds:
            if self.train("hard_negatives"):
                return 2 + self.train("num_negatives")
            return 2 if self.train("loss") == "simcse" else self.lengths.per_row
        return 2 if self.stage.rows in (("preference",), ("comparison",)) else 1

    @property
    def packed(self) -> bool:
        """Whether rows are joined and cut into batch rows of max_length tokens."""
        return bool(self.train("packing") or self.train("objective"))

    @property
    def block(self) -> int:
        """Tokens of a packed batch row, with the special tokens that pre-training adds; of an encoder's row where there is a decoder."""
        return self._read()[0]

    @property
    def decoder(self) -> int:
        """Tokens that a decoder reads beside a block of its encoder; 0 without one."""
        return self._read()[1]

    def _read(self) -> tuple[int, int]:
        tokens, objective = self.train("max_length"), self.train("objective")
        if objective == "span_corruption":
            from lib.methods.pretraining.span_corruption import lengths  # imports torch

            keys = (self.train(k) for k in ("denoisers", "noise_density", "mean_noise_span_length"))
            return lengths(tokens, *keys)
        return tokens + SPECIALS.get(objective, 0), 0

    @property
    def tokens(self) -> int:
        """T: tokens of the longest sequence."""
        return self.block if self.packed else self.lengths.longest

    @property
    def reference(self) -> bool:
        """Whether a frozen reference model runs beside the policy."""
        return "precompute_ref_log_probs" in self.defaults and not self.train("precompute_ref_log_probs")

    @property
    def forwards(self) -> int:
        """Passes without gradient per token: the reference model's, both models' over KTO's mismatched answers, and the first of an
        embedding model's two."""
        mismatched = "desirable_weight" in self.defaults and self.train("loss_type") == "kto"
        return (1 if self.reference else 0) + (2 if mismatched else 0) + (1 if self.embeds else 0)

    def steps(self) -> int | None:
        """Returns the number of optimizer steps; None if only the workers can count the rows."""
        if (self.train("max_steps") or -1) > 0:
            return self.train("max_steps")
        if not self.rows:
            return None
        examples = self.rows if self.embeds else self.rows * self.lengths.per_row / self.pairs
        if self.packed:
            examples *= self.lengths.mean / self.train("max_length")
        return math.ceil(
            (self.train("num_train_epochs") or 3.0) * -(-math.ceil(examples) // self.job.scale.global_batch)
        )

    @property
    def labelled(self) -> int:
        """Most positions of a sequence whose logits are computed. Pre-training computes those of all positions."""
        if self.train("objective"):
            return self.decoder or self.tokens
        return min(self.lengths.labelled, self.tokens)

    def tokens_per_step(self) -> float:
        mean = self.tokens if self.packed else self.lengths.mean
        return self.job.scale.global_batch * self.pairs * mean

    def teacher(self, gpu: bool, precision: str) -> int:
        """Returns the parameters of a teacher held beside the student; 0 without one."""
        name = self.train("teacher")
        if not name or name.startswith("serve:") or self.train("top_k") or self.train("hard_weight") == 1:
            return 0
        return study(Model(base=name), self.tokens, gpu, precision).parameters

    def anatomy(self, gpu: bool, precision: str) -> Anatomy:
        generator = self.train("generator_size") if self.train("objective") == "electra" else 0.0
        pretraining = Pretraining(generator, self.decoder)
        return study(
            self.job.model, self.tokens, gpu, precision, self.job.makes, self.train("keep_layers"), pretraining
        )

    def plain(self) -> Anatomy:
        """Returns the anatomy on a CPU, for numbers that don't depend on the device."""
        return self.anatomy(False, hardware.precision(self.job.scale.precision, "cpu"))

    def operations(self, gpu: bool, precision: str) -> float:
        """Returns the operations per token of training."""
        mean, share = self.lengths.mean, self.lengths.labelled_mean / self.lengths.mean
        if self.train("objective"):
            mean, share = self.tokens, self.labelled / self.tokens
        a, teacher = self.anatomy(gpu, precision), self.teacher(gpu, precision)
        again = self.train("gradient_checkpointing")
        return throughput.per_token(a, mean, share, again, self.forwards, teacher)

    def footprint(self, gpu: bool, precision: str) -> Footprint:
        """Returns the memory of one worker."""
        j, s = self.job, self.job.scale
        per_device, accumulation = strategy.split_batch(s.global_batch, s.micro_batch, s.workers)
        a, together = self.anatomy(gpu, precision), per_device * (1 if self.embeds else self.pairs)
        alone = j.model.adapter == "none"
        files = Path(described(j.model.base, j.model.revision)).glob("*.safetensors") if not gpu and not alone else ()
        return footprint(
            a,
            Setting(
                gpu, precision, s.strategy, s.workers, s.offload, together,
                labelled=together * self.labelled,
                accumulates=accumulation > 1,
                checkpointing=bool(self.train("gradient_checkpointing")),
                optimizer=self.train("optim") or "adamw_torch_fused",
                logit_bytes=DISTILLED if "hard_weight" in self.defaults else PRETRAINED if self.train("objective") else 0,
                reference=a.weight_bytes if self.reference and alone else 0,
                teacher=self.teacher(gpu, precision) * (4 if precision == "fp32" else 2),
                reread=sum(f.stat().st_size for f in files),
            ),
        )  # fmt: skip

    def checkpoint_bytes(self) -> int:
        """Returns the bytes of a checkpoint: each trained weight and AdamW's two numbers for it, in float32."""
        return self.plain().trainable * 12

    def changed(self, **keys) -> Work:
        """Returns the same work with other settings, such as micro_batch=2, gradient_checkpointing=True, adapter="lora"."""
        job = self.job
        for key, value in keys.items():
            for section in ("scale", "model"):
                if hasattr(getattr(job, section), key):
                    job = replace(job, **{section: replace(getattr(job, section), **{key: value})})
                    break
            else:
                job = replace(job, train=job.train | {key: value})
        other = object.__new__(Work)
        vars(other).update(vars(self) | {"job": job})
        return other
