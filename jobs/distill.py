"""Distillation: a smaller or cheaper student learns a teacher's distributions on a dataset.

L = α · hard + (1 − α) · T² · D(teacher ‖ student)        Hinton et al. 2015, https://arxiv.org/abs/1503.02531
α is `train.hard_weight`, T `train.soft_temperature`, D `train.divergence`: lib/distillation.py.

The student is `model.base`; with `train.keep_layers` it is made of it by leaving layers out.

    python jobs/distill.py --config configs/distill.yaml --train.teacher runs/sft
"""

from lib.launch import main


def build(job, args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lib import data, distillation, models

    distillation.check(args)
    shared = models.for_trainer(job.model, args)
    where = models.path(args.teacher)
    if AutoTokenizer.from_pretrained(where).get_vocab() != shared["processing_class"].get_vocab():
        raise ValueError(
            f"train.teacher: {args.teacher} has other tokens than {job.model.base}, so its distributions are of other things. "
            "Let the teacher write answers and train on those with jobs/sft.py (sequence-level distillation)."
        )
    teacher = AutoModelForCausalLM.from_pretrained(where, dtype="bfloat16" if args.bf16 else "float32")
    if args.keep_layers:
        if job.model.adapter != "none":
            raise ValueError("train.keep_layers: an adapter can't heal what is left out. Set model.adapter: none.")
        whole = AutoModelForCausalLM.from_pretrained(shared["model"], **args.model_init_kwargs)
        shared["model"] = distillation.keep_layers(whole, args.keep_layers)
        args.model_init_kwargs = None
    rows = data.load(job.data, ("chat", "text"))
    train, heldout = data.per_answer(rows.train), data.per_answer(rows.heldout)
    return distillation.DistillTrainer(teacher=teacher, args=args, train_dataset=train, eval_dataset=heldout, **shared)


if __name__ == "__main__":
    main(build, "lib.distillation:DistillConfig", rows=("chat", "text"), models=("teacher",))
