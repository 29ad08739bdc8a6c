"""Sets up TRL's GRPOTrainer with our rollouts and rewards.

TRL asks for answers once per update (rollout_func), then for each reward's numbers (reward_funcs), normalises them within each group
of answers to a prompt, and takes num_iterations passes over the answers. Advantages, losses and the KL term are TRL's.
"""

from __future__ import annotations

from trl import GRPOTrainer

from lib import data
from lib.config.job import Job
from lib.distributed.collectives import gathered
from lib.generation.sampling import Sampling
from lib.methods.rl import rewards
from lib.methods.rl.distinct import distinct
from lib.methods.rl.group_sampler import GroupSampler
from lib.methods.rl.heldout_answers import HeldoutAnswers
from lib.methods.rl.rewards import Rewards
from lib.methods.rl.rollout_pool import make
from lib.methods.rl.rollouts import Rollout, Rollouts
from lib.models import load


class Generation:
    """The answers of one update of one worker, between the two functions through which TRL asks for them and for their rewards."""

    def __init__(self, job: Job, args, tokenizer, scored: Rewards):
        self.job, self.args, self.tokenizer, self.rewards = job, args, tokenizer, scored
        self.rollouts: Rollouts | None = None
        self.drawn: list[Rollout] = []
        self.numbers: list[list[float | None]] = []

    def ready(self, model) -> Rollouts:
        """Returns what draws answers from the trainer's model, which exists once the trainer has been built."""
        if self.rollouts is None:
            a = self.args
            sampling = Sampling(
                temperature=a.temperature, top_p=a.top_p, top_k=a.top_k, min_p=a.min_p or 0.0,
                repetition_penalty=a.repetition_penalty, max_new_tokens=a.max_completion_length, seed=a.seed,
            )  # fmt: skip
            self.rollouts = make(self.job, a, model, self.tokenizer, sampling)
        return self.rollouts

    def answer(self, prompts: list[list[dict]], trainer: GRPOTrainer) -> dict:
        """TRL's rollout_func. prompts: this worker's part of the step's prompts, each repeated in a row for every answer of its group."""
        first, group = self.args.process_index * len(prompts), self.args.num_generations
        numbers = [(first + i) % group for i in range(len(prompts))]
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.drawn = self.ready(model).answers(prompts, numbers, trainer.state.global_step)
        return {
            "prompt_ids": [r.prompt for r in self.drawn],
            "completion_ids": [r.answer for r in self.drawn],
            "logprobs": None,
        }

    def functions(self) -> list:
        """Returns TRL's reward_funcs. The first computes the numbers of all rewards."""

        def column(at: int, name: str):
            def reward(prompts, log_metric, **columns) -> list[float | None]:
                if at == 0:
                    references = columns.get("reference") or [None] * len(prompts)
                    rows = [{"prompt": p, "reference": r} for p, r in zip(prompts, references, strict=True)]
                    self.numbers = self.rewards.score(rows, self.drawn)
                    log_metric("rewards/missing", sum(n[0] is None for n in self.numbers) / len(self.numbers))
                    everyone = [ids for some in gathered([r.answer for r in self.drawn]) for ids in some]
                    if (found := distinct(everyone)) is not None:
                        log_metric("distinct_2", found)
                return [n[at] for n in self.numbers]

            reward.__name__ = name
            return reward

        return [column(at, name) for at, name in enumerate(self.rewards.names)]


def trainer(job: Job, args, inputs: data.Loaded) -> GRPOTrainer:
    """Returns the trainer of one worker. Raises ValueError for rows that a reward can't read."""
    for side in (inputs.train, inputs.heldout):
        rewards.check_references(job, side or [])
    shared, measured = load.for_trainer(job.model, args), rewards.make(job, args)
    generation = Generation(job, args, shared["processing_class"], measured.trained())
    args.reward_weights = generation.rewards.weights
    made = GRPOTrainer(
        args=args, train_dataset=inputs.train, eval_dataset=inputs.heldout, reward_funcs=generation.functions(),
        rollout_func=generation.answer, **shared,
    )  # fmt: skip
    made.evaluate = HeldoutAnswers(made, generation.ready, measured)
    made.counts = lambda batch: {"tokens": int(batch["completion_mask"].sum())}  # which TRL's metrics are means over
    made.group_sampler = GroupSampler(
        len(inputs.train), job.scale.global_batch // args.num_generations, args.num_generations,
        args.num_iterations * args.steps_per_generation, args.seed, args.dataloader_drop_last,
    )  # fmt: skip
    made.cycle, made.generation = args.num_iterations, generation
    return made
