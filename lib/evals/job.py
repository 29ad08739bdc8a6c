"""What jobs/eval.py is asked to do, and every check that needs no model in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lib import quantized, vllm_generator
from lib.config import Data, Job
from lib.evals import decoding, length
from lib.evals.decoding import Decoding
from lib.evals.endpoint import Judge
from lib.evals.gate import Rule
from lib.evals.harness_tasks import LmEval
from lib.run import absolute


@dataclass
class EvalJob:
    """One evaluation: which models, on what, and where the report goes."""

    run: str = "runs/eval"
    """Where the report goes, as <run>/reports/report.html, .md and .json: a local path or s3://bucket/path."""
    runs: dict[str, str] = field(default_factory=dict)
    """The models, oldest first, {name: run directory, folder or hub name}. Each is compared with the one before it."""
    reward: str | None = None
    """The reward run that preference_accuracy tests, and that win_rate, arena and decodings by reward ask. None: there is none."""
    judge: Judge = field(default_factory=Judge)
    """A language model at any OpenAI-compatible address, which mt_bench, win_rate, arena, preference_accuracy, xstest, jailbreak
    and refusal_labels ask."""
    reference: str | None = None
    """Name, in runs, of the run that win_rate and kl measure the later ones against. None: the last but one."""
    tasks: list[str] = field(default_factory=lambda: ["demo"])
    """What to measure, by the names in lib/evals/tasks.py: demo, gsm8k, gsm8k_direct, humaneval, ifeval, jailbreak, mbpp, reference, xstest,
    perplexity, preference_accuracy, win_rate, arena, kl, mt_bench, bertscore, refusal_labels, or lm-eval's: lm_eval:arc_easy, lm_eval:my/task.yaml."""
    task_data: dict[str, str] = field(default_factory=dict)
    """Where a task's examples are, {task: file, folder, s3:// or hub name}; all of its rows are used. Default: the
    dataset's own place on the hub, and `data` for perplexity and preference_accuracy."""
    data: Data = field(default_factory=Data)
    """Held-out rows for perplexity, preference_accuracy, win_rate and kl: give the data of the training run."""
    lm_eval: LmEval = field(default_factory=LmEval)
    """How lm-eval's tasks ask."""
    bert_encoder: str | None = None
    """The encoder that bertscore compares with: a folder or a hub name."""
    decoding: list[str] = field(default_factory=lambda: ["greedy"])
    """How tasks with answers take them, each a column of its own: greedy; beam_4; t=0.7,top_p=0.9 (also top_k, min_p,
    repetition_penalty); contrastive_NAME, against that run; by the reward run best_of_8, reward_weighted_8 or
    reward_beam_4. win_rate compares greedy answers, kl samples."""
    limit: int | None = 200
    """At most this many held-out examples per task. None: all."""
    max_new_tokens: int | None = None
    """Longest answer generated, in tokens. None: as long as each task needs (lib/evals/length.py)."""
    seed: int = 0
    """Of sampled answers, of the rows drawn when there are more than limit, and of the bootstrap."""
    samples: int = 6
    """Prompts shown side by side in the report, drawn by the seed."""
    accuracy_floor: float = 0.65
    """The reward run should get more than this share of held-out pairs right."""
    kl_ceiling: float = 5.0
    """The mean KL from the reference should stay below this many nats per answer."""
    usd_per_hour: float = 0.0
    """Price of what models run on (one GPU, or the whole machine where there is none), for the cost of a thousand answers; 0 shows none."""
    gate: list[Rule] = field(default_factory=list)
    """Conditions that make the job exit 1 where they don't hold: {metric: demo.exact, run: dpo, at_least: 0.6}."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What runs the models. auto: vLLM where it is installed, unless a decoding or a quantised run needs transformers."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: GPUs where this machine has them, or the cluster has or can rent them."""
    workers: int | None = None
    """Models at work at the same time. None: one per GPU, or one per CPU core where there is no GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic. auto: bfloat16 where it is real, float16 on older GPUs, else float32."""

    def reference_run(self) -> str:
        return self.reference or list(self.runs)[-2]

    def data_for(self, task: str) -> Data:
        """The rows that perplexity, preference_accuracy, win_rate or kl reads."""
        if address := self.task_data.get(task):
            whole = {"heldout": None, "heldout_fraction": 1.0, "format": "auto", "columns": {}}
            if "://" in address or Path(absolute(address)).exists():
                whole |= {"name": None, "split": "train", "revision": None}  # which say what part of `data` is meant
            return replace(self.data, source=address, **whole)
        return self.data

    def longest(self, task: str) -> int:
        """Tokens of the longest answer to `task`."""
        if task in ("win_rate", "arena", "kl") and self.data.source == "demo":
            task = "demo"  # whose prompts these are: the same answers serve
        if self.max_new_tokens:
            return self.max_new_tokens
        return min(length.LONGEST.get(task, 256), length.room(tuple(self.runs.values())) or 10**6)

    def decodings(self, task: str = "") -> list[Decoding]:
        """As `task` is answered by each. Raises ValueError that names `decoding`."""
        return [decoding.parse(text, self.longest(task), self.seed) for text in self.decoding]

    def vllm(self) -> bool:
        """Whether vLLM runs the models. Raises ValueError that names `engine`."""
        if self.engine == "transformers":
            return False
        own = [d.name for d in self.decodings() if d.sampling.beams > 1 or d.sampling.amateur or d.sampling.draft]
        if self.engine == "auto":
            # reward_beam changes between two models at every piece, and vLLM gives a model up only with its process.
            also = any(d.head == "reward_beam" for d in self.decodings()) or any(map(_not_for_vllm, self.runs.values()))
            return vllm_generator.installed() and not own and not also
        if not vllm_generator.installed():
            raise ValueError("engine: vllm is not installed here. Say engine: auto, or pip install 'shoestring[gpu]'.")
        if own:
            raise ValueError(f"engine: vllm has no {', '.join(own)}. Say engine: transformers.")
        return True

    def challengers(self) -> list[str]:
        """The runs after the reference."""
        names = list(self.runs)
        return names[names.index(self.reference_run()) + 1 :]


def after(job: Job) -> EvalJob:
    """What a training job's `eval` section asks for once its run is finished: the run beside its base."""
    scorer = job.makes == "reward"  # a reward model is tested on pairs; it answers nothing
    return EvalJob(
        run=job.run,
        runs={} if scorer else {"base": job.model.base, job.stage: job.run},
        reward=job.run if scorer else None,
        tasks=job.eval.tasks,
        data=job.data,
        limit=job.eval.limit,
        max_new_tokens=job.eval.max_new_tokens,
        device="cpu" if job.scale.device == "cpu" else "auto",
    )


def _not_for_vllm(base: str) -> bool:
    """Whether a run's weights are in a format that only transformers loads; a run that isn't there is told of elsewhere."""
    path = base if "://" in base else absolute(base)
    return quantized.only_transformers(path if "://" in path or Path(path).is_dir() else base)


def needs(job: EvalJob) -> list[str]:
    """Problems that the settings alone show."""
    out = []
    texts = [t for t in job.tasks if t not in ("preference_accuracy", "refusal_labels")]
    if texts and not job.runs:
        out.append(f"runs: {', '.join(texts)} needs at least one, such as runs.sft: runs/sft.")
    if "preference_accuracy" in job.tasks and not job.reward and not job.judge.url:
        out.append(
            "reward: preference_accuracy tests a reward run or a judge, and there is none. Set reward: runs/reward."
        )
    if "mt_bench" in job.tasks and not job.judge.url:
        out.append("judge.url: mt_bench needs a judge. Set judge.url to an OpenAI-compatible API, and judge.model.")
    for task in ("win_rate", "arena"):
        if task in job.tasks and not job.reward and not job.judge.url and job.data.source != "demo":
            out.append(
                f"reward: {task} needs a judge; only the demo data has a rule. Set reward: runs/reward or judge.url, or drop {task}."
            )
    if "arena" in job.tasks and len(job.runs) < 2:
        out.append("runs: arena needs two or more that meet.")
    pairwise = [t for t in ("win_rate", "kl") if t in job.tasks]
    if job.reference and job.runs and job.reference not in job.runs:
        from lib.cli import nearest

        near = nearest(job.reference, job.runs)
        out.append(f"reference: {job.reference} is not one of runs ({', '.join(job.runs)}).{near}")
    elif pairwise and job.runs:
        if len(job.runs) < 2:
            out.append(
                f"runs: {' and '.join(pairwise)} compare two runs, and there is one. Add the reference before it."
            )
        elif not job.challengers():
            out.append(f"reference: {job.reference} is the last of runs: nothing is compared with it. Put it earlier.")
    return out
