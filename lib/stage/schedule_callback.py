"""Changes settings of the optimizer during training, as the job's `schedule` says.

A change after step s is made before step s + 1, also if training resumes there: the checkpoint of step s has the values before it, and later
checkpoints have those after it. So a resumed run takes the same steps.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.config.job import Schedule


class ScheduleCallback(TrainerCallback):
    """For every rank."""

    def __init__(self, schedule: Schedule):
        self.learning_rate = {int(step): value for step, value in schedule.learning_rate.items()}
        self.weight_decay = {int(step): value for step, value in schedule.weight_decay.items()}

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        if (rate := self.learning_rate.get(state.global_step)) is not None:
            set_learning_rate(optimizer, getattr(lr_scheduler, "scheduler", lr_scheduler), rate)
        if (decay := self.weight_decay.get(state.global_step)) is not None:
            for group in optimizer.param_groups:
                if group["weight_decay"]:
                    group["weight_decay"] = decay


def set_learning_rate(optimizer: Any, scheduler: Any, rate: float) -> None:
    """Replaces the rate from which a LambdaLR (every scheduler of transformers.get_scheduler but two) computes those of all groups."""
    rates = [rate * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler.load_state_dict(scheduler.state_dict() | {"base_lrs": [rate] * len(rates), "_last_lr": rates})
    for group, now in zip(optimizer.param_groups, rates, strict=True):
        group["initial_lr"], group["lr"] = rate, now
