"""Sets up the teacher of a distillation from its `train:` section, and checks it against the student.

train.teacher    a run, loaded beside the student (Whole in lib/methods/distillation/teacher.py) or, with train.top_k, run once before training (Kept);
                 or serve:NAME (Served)
train.answers    whose answers are learnt, the data's or the teacher's (lib/methods/distillation/teacher_answers.py)
"""

from __future__ import annotations

from lib import data
from lib.config.job import Job
from lib.methods.distillation.teacher import SERVED, Kept, Served, Teacher, Whole, width
from lib.models import load, locate
from lib.run import Run
from lib.runtime import provenance


class Lessons:
    """The teacher of one worker."""

    def __init__(self, job: Job, args, tokenizer):
        self.job, self.args, self.tokenizer = job, args, tokenizer
        self.folder = args.keep or Run(job.run).at("teacher")
        self.dtype = "bfloat16" if args.bf16 else "float32"
        if not args.teacher.startswith(SERVED):
            self.where, self.identity = locate.path(args.teacher), locate.locate(args.teacher)[1]

    def answers(self, rows):
        """Returns the rows, with the teacher's answers if train.answers asks for them."""
        from lib.distributed.collectives import barrier, share
        from lib.generation.sampling import Sampling
        from lib.generation.transformers_generator import TransformersGenerator
        from lib.methods.distillation import teacher_answers
        from lib.runtime import hardware

        a = self.args
        if rows is None or a.answers == "data":
            return rows

        def generator():
            device = str(a.device)
            template = load.parent_template(a.teacher)
            return TransformersGenerator(self.where, hardware.dtype("auto", a.device.type), device, template)

        sampling = Sampling(temperature=a.answer_temperature, max_new_tokens=a.answer_tokens, seed=a.seed)
        return teacher_answers.written(rows, self.folder, self.identity, generator, sampling, share(), barrier)

    def distributions(self, trainer) -> Teacher | None:
        """Returns the teacher; None if only tokens are learnt. Raises ValueError if teacher and student have different tokens."""
        from transformers import AutoConfig, AutoTokenizer

        from lib.distributed.collectives import barrier, share
        from lib.methods.distillation.trainer import vocabulary
        from lib.models.window import positions

        a, device = self.args, self.args.device
        if a.hard_weight == 1 and not a.on_policy:
            return None
        if a.teacher.startswith(SERVED):
            served = Served(a.teacher.removeprefix(SERVED), a.top_k, a.soft_temperature, device)
            known = served.who()
            if share()[0] == 0:
                provenance.pin(Run(self.job.run), "train.teacher", known["identity"], "its weights are")
            self._same_tokens(known["vocabulary"], known["base"])
            self._fits(trainer, known["positions"])
            return served
        self._same_tokens(vocabulary(AutoTokenizer.from_pretrained(self.where)), a.teacher)
        self._fits(trainer, positions(AutoConfig.from_pretrained(self.where)))

        def whole() -> Whole:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(self.where, dtype=self.dtype)
            return Whole(model.to(device), a.soft_temperature, width(self.tokenizer))

        if not a.top_k:
            return whole()
        rows = [
            (row["input_ids"], row["labels"])
            for part in (trainer.train_dataset, trainer.eval_dataset)
            if part is not None
            for row in part
        ]
        return Kept(
            self.folder, rows, f"{self.identity} {self.dtype}", a.top_k, a.soft_temperature, whole, trainer.data_collator,
            device, share(), self.job.scale.micro_batch, barrier,
        )  # fmt: skip

    def _fits(self, trainer, most: int | None) -> None:
        """Raises ValueError if a row, or a prompt with the student's own answer, may exceed the teacher's positions."""
        from lib.models.window import positions, refuse

        a, parts = self.args, [p for p in (trainer.train_dataset, trainer.eval_dataset) if p is not None]
        lengths = [len(ids) for part in parts for ids in part["input_ids"]]
        refuse("rows, for train.teacher,", lengths, most, f"Set train.max_length: {most}.")
        if a.on_policy:
            least = min((n for n in (most, positions(trainer.model.config)) if n is not None), default=None)
            written = [
                next((i for i, x in enumerate(labels) if x != -100), 0) + a.answer_tokens
                for part in parts
                for labels in part["labels"]
            ]
            refuse(
                "prompts with train.answer_tokens", written, least, "Lower train.answer_tokens, or train.max_length."
            )

    def _same_tokens(self, vocabulary: str, teacher: str) -> None:
        from lib.methods.distillation.trainer import vocabulary as of

        if vocabulary != of(self.tokenizer):
            raise ValueError(
                f"train.teacher: {teacher} has other tokens than {self.job.model.base}, so the student can't learn its distributions. "
                "Learn its answers instead: --train.answers teacher --train.hard_weight 1 (sequence-level distillation)."
            )


def trainer(job: Job, args, inputs: data.Loaded, shared: dict):
    """Returns the DistillTrainer of this worker. shared: the result of lib.models.load.for_trainer for the student."""
    from lib.methods.distillation.trainer import DistillTrainer

    teacher = Lessons(job, args, shared["processing_class"])
    if args.on_policy and inputs.kind == "text":
        raise ValueError(
            "train.on_policy: the student answers prompts, and data.source holds plain texts. Leave it out."
        )
    train, heldout = (teacher.answers(data.per_answer(part)) for part in (inputs.train, inputs.heldout))
    return DistillTrainer(teach=teacher.distributions, args=args, train_dataset=train, eval_dataset=heldout, **shared)


def check(job: Job, args) -> None:
    """Raises ValueError, naming the key of `train`, if settings are out of range or conflict. args: with DistillConfig's fields."""
    if args.keep_layers and job.model.adapter != "none":
        raise ValueError("train.keep_layers: an adapter can't heal what is left out. Set model.adapter: none.")
    if args.on_policy and job.scale.strategy in ("fsdp", "zero3"):
        raise ValueError(
            f"train.on_policy: {job.scale.strategy} shards the weights, so the student can't generate. Use ddp."
        )
    if not 0 <= args.hard_weight <= 1:
        raise ValueError(f"train.hard_weight: must be from 0 to 1, is {args.hard_weight}.")
    if args.soft_temperature <= 0:
        raise ValueError(f"train.soft_temperature: must be above 0, is {args.soft_temperature}.")
    if not 0 < args.jsd_beta < 1:
        raise ValueError(f"train.jsd_beta: must be above 0 and below 1, is {args.jsd_beta}.")
    if not 0 <= args.on_policy <= 1:
        raise ValueError(f"train.on_policy: must be from 0 to 1, is {args.on_policy}.")
    for key, low in (("top_k", 1), ("answer_tokens", 1), ("keep_layers", 1), ("answer_temperature", 0)):
        if (value := getattr(args, key)) is not None and value < low:
            raise ValueError(f"train.{key}: must be {low} or more, is {value:g}.")
    for key, plain in (("loss_type", "nll"), ("label_smoothing_factor", 0.0)):
        if getattr(args, key) != plain:
            raise ValueError(
                f"train.{key}: distillation's loss is its own (lib/methods/distillation/trainer.py). Leave it out."
            )
    served = (args.teacher or "").startswith(SERVED)
    if served and args.dataloader_num_workers:
        raise ValueError(
            "train.dataloader_num_workers: a served teacher is queried by the worker process itself. Leave it out."
        )
    if served and not args.top_k:
        raise ValueError("train.top_k: a served teacher sends only its likeliest tokens. Set how many, such as 64.")
    if served and args.answers == "teacher":
        raise ValueError("train.answers: teacher needs the teacher's run, not a served one: name it in train.teacher.")
    if args.on_policy and args.top_k and not served:
        raise ValueError(
            "train.top_k: the student's own answers can't be scored before training. Leave it out with on_policy."
        )
    if args.keep and not args.top_k and args.answers == "data":
        raise ValueError("train.keep: there is nothing to keep. Set train.top_k, or answers: teacher.")
    if args.packing or args.padding_free:
        raise ValueError("train.packing, train.padding_free: distillation doesn't support them. Leave them out.")
