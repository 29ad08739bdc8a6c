"""What a run has taken so far, over all its attempts: seconds, tokens, memory, and the sum of its losses.

Kept in each checkpoint as tally.json, so that a run that goes on from it counts on: its speed and its mean loss are those of the
run, not of the last attempt, and the same as if nothing had happened. What an attempt did after its last checkpoint is done again
and counted once.
"""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path

from lib import finite
from lib.failure import StopTraining

FILE = "tally.json"


class Tally:
    """Of one worker. began: when its attempt did (Unix time); rows: of a step."""

    def __init__(self, trainer, began: float, rows: int, resumed: str | None):
        self.trainer, self.rows, self.began, self.ready = trainer, rows, began, time.time()
        file = Path(resumed, FILE) if resumed else None
        self.before = json.loads(file.read_text()) if file and file.is_file() else {}
        self.unknown = bool(resumed) and not self.before  # a checkpoint of an earlier version
        self.uncounted, self.trained = (0, 0), None
        self.loss = self.before.get("loss", 0.0)
        """Sum over the steps, this worker's share from where it began; a tensor once there is one."""
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

    def stop(self) -> None:
        """Training is over."""
        self.trained = time.time()

    def seconds(self) -> dict[str, float]:
        return {
            "load": self.before.get("load", 0.0) + self.ready - self.began,
            "train": self.before.get("train", 0.0) + (self.trained or time.time()) - self.ready,
        }

    def speed(self, samples: bool = False) -> dict[str, float]:
        """As transformers' speed_metrics names them."""
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
        """Of all steps. Every rank has to call it."""
        return self._total() / max(1, self.trainer.state.global_step - self.uncounted[1])

    def check(self) -> None:
        """Raises StopTraining, on every rank, where a loss since the last checkpoint or a trained weight isn't finite."""
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
        """Every rank has to call it; the first one writes."""
        total = self._total()
        if self.trainer.args.process_index == 0 and not self.unknown:
            kept = self.seconds() | {"loss": total, "peak": self.peak(), "starts": self.starts()}
            (folder / FILE).write_text(json.dumps(kept))

    def starts(self) -> int:
        """How often workers have started, of those whose work was kept."""
        return self.before.get("starts", 0) + 1

    def peak(self) -> int:
        """Bytes of this worker, or of the first one in earlier attempts, at most."""
        import torch

        if torch.cuda.is_available():
            mine = torch.cuda.max_memory_allocated()
        else:
            mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(mine, self.before.get("peak", 0))

    def _total(self) -> float:
        """Sum over all steps of the loss, a mean over the workers."""
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
