"""Progress output on the driver, read from the run's metrics.jsonl, so that workers need no channel to the driver."""

from __future__ import annotations

import sys
import threading
import time

from lib.run import Run


class Progress:
    """While the `with` block runs, prints a line for each loss that the workers log; a terminal also shows the latest as its status."""

    def __init__(self, run: Run):
        self.run, self.stop = run, threading.Event()
        self.every = 5.0 if run.remote else 1.0
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Progress:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join(timeout=10)

    def _follow(self) -> None:
        from rich.console import Console

        console, shown, first = Console(width=None if sys.stdout.isatty() else 160, highlight=False), 0, None
        with console.status("starting workers …") as status:
            while True:
                last = self.stop.wait(self.every)
                rows = [r for r in self.run.metrics() if "loss" in r]
                if len(rows) < shown:  # the run went back to a checkpoint
                    shown, first = len(rows), None
                for row in rows[shown:]:
                    first = first or (time.time(), row["step"])
                    text = _line(row, first)
                    status.update(text)
                    console.print(text)
                shown = len(rows)
                if last:
                    return


def _line(row: dict, first: tuple[float, int]) -> str:
    elapsed, done, total = time.time() - first[0], row["step"] - first[1], row["max_steps"]
    left = f"  {elapsed / done * (total - row['step']):.0f} s left" if done > 0 else ""
    rest = "  ".join(
        f"{k} {row[k]:.4g}"
        for k in ("grad_norm", "learning_rate", "reward", "rewards/accuracies", "accuracy")
        if k in row
    )
    return f"step {row['step']}/{total}  loss {row['loss']:.4f}  {rest}{left}"
