"""Writes a run while it trains: metrics.jsonl, sealed checkpoints, and an early stop at a loss that isn't finite."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.distributed.collectives import barrier
from lib.run import Run
from lib.runtime import checkpoint, finite
from lib.runtime.failure import StopTraining
from lib.runtime.tally import Tally


class AllStepsDone(Exception):
    """Raised when the run resumes from its last checkpoint: the weights are loaded, and only the export is left to do."""


class RunCallback(TrainerCallback):
    """For every rank; rank 0 writes. Raises StopTraining at a number that isn't finite, and AllStepsDone."""

    def __init__(self, run: Run, tally: Tally):
        self.run, self.tally = run, tally

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tally.on_train_begin(state)
        if args.process_index == 0:  # drops rows logged after the checkpoint; those steps are taken again
            self.run.write_text("metrics.jsonl", "".join(_line(row, state) for row in state.log_history))
        if state.global_step >= state.max_steps:  # the Trainer would take another step
            raise AllStepsDone

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        row = state.log_history[-1]
        for key, name in (("loss", "loss"), ("grad_norm", "grad_norm"), ("eval_loss", "held-out loss")):
            if not math.isfinite(float(row.get(key, 0.0))):
                raise StopTraining(f"{name} is {row[key]} at step {state.global_step}. {finite.REMEDY}")
        if args.process_index == 0:
            self.run.append_text("metrics.jsonl", _line(row, state))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """args: with the field keep_checkpoints that lib/stage/training_arguments.py adds."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            self.tally.check()
        except StopTraining:
            barrier()
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                shutil.rmtree(folder)
            raise
        self.tally.save(folder)
        checkpoint.seal(self.run, folder, args.keep_checkpoints)


def _line(row: dict, state: TrainerState) -> str:
    return json.dumps({"time": round(time.time(), 2)} | row | {"max_steps": state.max_steps}, sort_keys=True) + "\n"
