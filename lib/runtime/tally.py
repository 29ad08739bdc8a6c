"""Totals of a run over all its attempts: seconds, tokens, memory, and the sum of its losses.

They are stored in each checkpoint as tally.json and continued on resume, so speed and mean loss are those of the whole run, as if
it had not been interrupted. Work after an attempt's last checkpoint is repeated, and counted only once.
"""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path

from lib.runtime import finite
from lib.runtime.failure import StopTraining

FILE = "tally.json"


class Tally:
    """The totals of one worker. began: start of its attempt (Unix time); rows: rows per step; resumed: checkpoint folder or None."""

    def __init__(self, trainer, began: float, rows: int, resumed: str | None):
        self.trainer, self.rows, self.began, self.ready = trainer, rows, began, time.time()
        file = Path(resumed, FILE) if resumed else None
        self.before = json.loads(file.read_text()) if file and file.is_file() else {}
        self.unknown = bool(resumed) and not self.before  # a checkpoint of an earlier version
        self.uncounted = (0, 0)
        self.trained: float | None = None
        self.loss = self.before.get("loss", 0.0)
        """Sum over the steps: the stored total, plus this worker's losses since the resume. A tensor after the first step."""
        step, log = trainer.training_step, trainer.log

        def training_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            self.loss = self.loss + loss.detach().double()
            return loss

        def logged(logs, start_time=None):
            if start_time is not None or "train_loss" in logs:
                logs |= self.speed(samples="train_loss" in logs)
            if "train_loss" in logs:
                logs["train_loss"] = self.mean_loss()
            log(logs)

        trainer.training_step, trainer.log = training_step, logged

    def on_train_begin(self, state) -> None:
        if self.unknown:
            self.uncounted = (state.num_input_tokens_seen, state.global_step)

    def stop(self) -> float:
        """Marks the end of training and returns it (Unix time)."""
        self.trained = time.time()
        return self.trained

    def seconds(self) -> dict[str, float]:
        return {
            "load": self.before.get("load", 0.0) + self.ready - self.began,
            "train": self.before.get("train", 0.0) + (self.trained or time.time()) - self.ready,
        }

    def speed(self, samples: bool = False) -> dict[str, float]:
        """Returns speeds under the names of transformers' speed_metrics."""
        state, seconds = self.trainer.state, self.seconds()["train"]
        tokens, steps = state.num_input_tokens_seen - self.uncounted[0], state.global_step - self.uncounted[1]
        found = {"train_runtime": round(seconds, 4)}
        if steps:
            found["train_tokens_per_second"] = round(tokens / seconds, 3)
        if samples:
            found["train_steps_per_second"] = round(steps / seconds, 3)
            found["train_samples_per_second"] = round(steps * self.rows / seconds, 3)
        return found

    def mean_loss(self) -> float:
        """Returns the mean over all steps. Every rank has to call it."""
        return self._total() / max(1, self.trainer.state.global_step - self.uncounted[1])

    def check(self) -> None:
        """Raises StopTraining, on every rank, if a loss since the last checkpoint or a trained weight isn't finite."""
        found = [finite.parameters(self.trainer.model)]
        if _many():
            import torch.distributed as dist

            found = [None] * dist.get_world_size()
            dist.all_gather_object(found, finite.parameters(self.trainer.model))
        step, name = self.trainer.state.global_step, next(filter(None, found), None)
        if not math.isfinite(total := self._total()):
            raise StopTraining(f"loss is {total} at step {step} or soon before. {finite.REMEDY}")
        if name:
            raise StopTraining(f"{name} holds NaN or infinity at step {step}. {finite.REMEDY}")

    def save(self, folder: Path) -> None:
        """Writes tally.json. Every rank has to call it; rank 0 writes."""
        total = self._total()
        if self.trainer.args.process_index == 0 and not self.unknown:
            kept = self.seconds() | {"loss": total, "peak": self.peak(), "starts": self.starts()}
            (folder / FILE).write_text(json.dumps(kept))

    def starts(self) -> int:
        """Returns how often workers have started, counting only attempts whose work was kept in a checkpoint."""
        return self.before.get("starts", 0) + 1

    def peak(self) -> int:
        """Returns the peak memory in bytes of this worker, or of rank 0 in earlier attempts if that was more."""
        import torch

        if torch.cuda.is_available():
            mine = torch.cuda.max_memory_allocated()
        else:
            mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(mine, self.before.get("peak", 0))

    def _total(self) -> float:
        """Returns the loss summed over all steps, averaged over the workers."""
        import torch

        mine = torch.as_tensor(self.loss, dtype=torch.float64, device=self.trainer.args.device).clone()
        if _many():
            import torch.distributed as dist

            dist.all_reduce(mine)
            mine /= dist.get_world_size()
        return mine.item()


def _many() -> bool:
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1
