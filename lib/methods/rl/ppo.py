"""Sets up PPO: the policy with its value model, the reference, rollouts and rewards."""

from __future__ import annotations

from typing import Any

from trl.trainer.utils import disable_dropout_in_model

from lib import data
from lib.config.job import Job
from lib.generation.sampling import Sampling
from lib.methods.rl import rewards, value_model
from lib.methods.rl.group_sampler import GroupSampler
from lib.methods.rl.heldout_answers import HeldoutAnswers
from lib.methods.rl.policy import policy
from lib.methods.rl.ppo_config import PPOConfig
from lib.methods.rl.ppo_trainer import PPOTrainer
from lib.methods.rl.rollout_pool import make
from lib.models import load, locate


def trainer(job: Job, args: PPOConfig, inputs: data.Loaded) -> PPOTrainer:
    """Returns the trainer of one worker. Raises ValueError for rows that a reward can't read, or a value model with another tokenizer."""
    for side in (inputs.train, inputs.heldout):
        rewards.check_references(job, side or [])
    trained, tokenizer = policy(job.model, args)
    reference = _reference(job, args) if job.model.adapter == "none" else None
    value_model.install(trained, _value(trained, tokenizer, args))
    disable_dropout_in_model(trained)  # the ratio of an update's first pass is 1
    sampling = Sampling(temperature=args.temperature, max_new_tokens=args.max_completion_length, seed=args.seed)
    rollouts = make(job, args, trained, tokenizer, sampling)
    measured = rewards.make(job, args)
    made = PPOTrainer(
        model=trained, ref_model=reference, rollouts=rollouts, scored=measured.trained(), args=args, train_dataset=inputs.train,
        eval_dataset=inputs.heldout, processing_class=tokenizer,
    )  # fmt: skip
    made.evaluate = HeldoutAnswers(made, lambda _: rollouts, measured)
    made.group_sampler = GroupSampler(
        len(inputs.train), job.scale.global_batch, 1, args.num_iterations, args.seed, args.dataloader_drop_last
    )
    return made


def _reference(job: Job, args: PPOConfig) -> Any:
    made, _ = policy(job.model, args)
    disable_dropout_in_model(made)
    return made.eval().requires_grad_(False).to(args.device)


def _value(trained: Any, tokenizer: Any, args: PPOConfig) -> Any:
    from transformers import AutoTokenizer

    if args.value is None:
        return value_model.ValueHead(trained.config.get_text_config().hidden_size)
    where = locate.path(args.value)
    read = load.auto("reward").from_pretrained(where, dtype="float32", attn_implementation="eager")
    if AutoTokenizer.from_pretrained(where).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"train.value: {args.value} has another tokenizer than model.base, whose tokens it would value. "
            "Train it from the same base."
        )
    if args.gradient_checkpointing:
        read.gradient_checkpointing_enable()
    return value_model.ValueBody(read)
