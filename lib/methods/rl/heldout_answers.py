"""The held-out measure of reinforcement learning: rewards of greedy answers to held-out prompts."""

from __future__ import annotations

import statistics

from lib.methods.rl.rewards import Rewards


class HeldoutAnswers:
    """Replaces a trainer's `evaluate`, whose loss on held-out prompts would say little: an advantage compares answers to one prompt.

    rollouts(model) returns what draws answers. Logs eval_rewards/NAME, the mean of each reward, eval_standard_error/NAME of that mean over
    the prompts, eval_reward, their weighted sum, eval_answers, their number, and eval_tokens, the mean length. Answers whose
    rewards are missing are left out of the rewards and counted in eval_missing.
    """

    def __init__(self, trainer, rollouts, rewards: Rewards):
        self.trainer, self.rollouts, self.rewards = trainer, rollouts, rewards

    def __call__(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        from accelerate.utils import gather_object

        t = self.trainer
        rows = t.eval_dataset if eval_dataset is None else eval_dataset
        own = [rows[i] for i in range(t.args.process_index, len(rows), t.args.world_size)]
        model = t.accelerator.unwrap_model(t.model)
        drawn = self.rollouts(model).greedy([row["prompt"] for row in own]) if own else []
        numbers = gather_object(self.rewards.score(own, drawn) if own else [])
        lengths = gather_object([len(r.answer) for r in drawn])
        whole = [n for n in numbers if None not in n]
        found = {f"{metric_key_prefix}_missing": float(len(numbers) - len(whole))}
        found[f"{metric_key_prefix}_tokens"] = sum(lengths) / len(lengths)
        if whole:
            totals = [self.rewards.total(n) or 0.0 for n in whole]
            found[f"{metric_key_prefix}_reward"] = sum(totals) / len(totals)
            found[f"{metric_key_prefix}_answers"] = float(len(whole))
            for at, name in enumerate(self.rewards.names):
                column = [n[at] or 0.0 for n in whole]
                found[f"{metric_key_prefix}_rewards/{name}"] = sum(column) / len(column)
                if len(column) > 1:
                    error = statistics.stdev(column) / len(column) ** 0.5
                    found[f"{metric_key_prefix}_standard_error/{name}"] = error
        was = t.model.training
        t.model.eval()  # TRL's log would otherwise add the means of the steps since the last log, and forget them
        t.log(found)
        t.model.train(was)
        t.control = t.callback_handler.on_evaluate(t.args, t.state, t.control, found)
        return found
