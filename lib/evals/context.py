"""The context of a measurement: the job, the engine that runs the models, and the held-out rows."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lib.evals.job import EvalJob
from lib.evals.judging.llm_judge import Panel
from lib.evals.report.schema import Calibration
from lib.evals.rows import ROWS
from lib.evals.task import Example
from lib.generation.pool import Engine
from lib.generation.sampling import Sampling


@dataclass
class Context:
    job: EvalJob
    engine: Engine
    scorer: str | None
    """The reward run's name in the engine; None if there is no reward run."""
    rule: Callable[[Example, str, str], float] | None
    """Returns 1, 1/2 or 0 for the first answer against the second; None if the prompts have no rule."""
    panel: Panel | None = None
    """The language model that judges, or None."""
    recorded: dict[str, dict[tuple[str, str], dict]] = field(default_factory=dict)
    """{task: {(example id, decoding): {example, decoding, answers: {run: text}, scores: {run: {metric: number}}, details: {run: {}}}}}"""

    calibrations: list[Calibration] = field(default_factory=list)
    """The reward run's calibration, once its pairs are measured."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def reference(self) -> str:
        return self.job.reference_run()

    @property
    def challengers(self) -> list[str]:
        return self.job.challengers()

    @property
    def sampling(self) -> Sampling:
        """Sampling from the model's own distribution, over which KL is defined."""
        return Sampling(temperature=1.0, max_new_tokens=self.job.longest("kl"), seed=self.job.seed)

    def rows(self, task: str) -> list[dict]:
        """Returns at most job.limit of the held-out rows for `task`, drawn with the seed because files are often sorted."""
        heldout = self.all_rows(task)
        return [heldout[i] for i in draw(len(heldout), self.job.limit, self.job.seed)]

    def all_rows(self, task: str):
        """Returns the held-out rows for `task`, a datasets.Dataset."""
        from lib.data import load

        data = self.job.data_for(task)
        with self.lock:  # measures run in threads, which would write the same cache file
            heldout = load(data, ROWS[task], training=False).heldout
        if heldout is None:
            raise ValueError(f"data.source: {data.source} has no held-out rows. Raise data.heldout_fraction.")
        return heldout

    def prompts(self) -> list[Example]:
        """Returns held-out prompts: the demo's own, which its rule can judge, or those of the data."""
        if self.job.data.source == "demo":
            from lib.evals.tasks.demo import DemoTask

            return DemoTask().examples(self.job.limit)
        return [Example(f"prompt-{i}", row["prompt"]) for i, row in enumerate(self.rows("win_rate"))]

    def record(
        self,
        task: str,
        run: str,
        examples: list[Example],
        answers: list[str],
        scores: list[dict],
        decoding: str = "greedy",
        details: list[dict] | None = None,
    ) -> None:
        """Records individual answers for the report's samples and examples.jsonl. details: per answer, additional keys for its
        line in examples.jsonl."""
        kept = self.recorded.setdefault(task, {})
        for e, answer, score, more in zip(examples, answers, scores, details or [{}] * len(answers), strict=True):
            new = {"example": e, "decoding": decoding, "answers": {}, "scores": {}, "details": {}}
            row = kept.setdefault((e.id, decoding), new)
            row["answers"][run], row["scores"][run], row["details"][run] = answer, score, more


def draw(n: int, limit: int | None, seed: int) -> list[int]:
    """Returns the sorted indices of at most `limit` of n rows."""
    return list(range(n)) if limit is None or limit >= n else sorted(random.Random(seed).sample(range(n), limit))
