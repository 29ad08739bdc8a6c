"""The configuration of jobs/eval.py, and the checks that the settings alone allow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lib.config.job import Data, Job
from lib.evals.judging.openai_client import Judge
from lib.evals.report import length
from lib.evals.report.gate import Rule
from lib.evals.rows import ROWS
from lib.evals.tasks.harness_tasks import LmEval
from lib.generation import decoding, vllm_generator
from lib.generation.decoding import Decoding
from lib.models import quantized_formats
from lib.run import absolute


@dataclass
class EvalJob:
    """The settings of one evaluation: models, tasks, decodings and where the report goes."""

    run: str = "runs/eval"
    """Run directory for the report (<run>/reports/report.html, .md and .json): a local path or s3://bucket/path."""
    runs: dict[str, str] = field(default_factory=dict)
    """The models to evaluate, oldest first, as {name: run directory, folder or hub name}. Each is compared with its predecessor."""
    reward: str | None = None
    """The reward run that preference_accuracy tests and that win_rate, arena and reward-guided decodings use. None: no reward model."""
    judge: Judge = field(default_factory=Judge)
    """A language model behind an OpenAI-compatible API that judges answers in mt_bench, win_rate, arena, preference_accuracy, xstest,
    jailbreak and refusal_labels."""
    reference: str | None = None
    """Name, in runs, of the run that win_rate and kl compare later runs with. None: the second to last."""
    tasks: list[str] = field(default_factory=lambda: ["demo"])
    """Tasks to run: demo, demo_steps, gsm8k, gsm8k_direct, humaneval, ifeval, jailbreak, mbpp, reference, xstest, perplexity,
    preference_accuracy, win_rate, arena, kl, mt_bench, bertscore, refusal_labels, pseudo_perplexity, denoising_loss, replaced_f1,
    next_segment, sts, retrieval, linear_probe, classification, scores (lib/evals/registry.py), or one of lm-eval's: lm_eval:arc_easy,
    lm_eval:my/task.yaml."""
    task_data: dict[str, str] = field(default_factory=dict)
    """Location of a task's examples, as {task: file, folder, s3:// or hub name}; all rows are used. Default: the dataset on the
    hub, and `data` for perplexity and preference_accuracy."""
    data: Data = field(default_factory=Data)
    """Data whose held-out rows serve perplexity, preference_accuracy, win_rate, arena and kl: set what the training run used."""
    lm_eval: LmEval = field(default_factory=LmEval)
    """Prompt settings for lm-eval's tasks."""
    bert_encoder: str | None = None
    """The encoder whose embeddings bertscore compares: a folder or a hub name."""
    decoding: list[str] = field(default_factory=lambda: ["greedy"])
    """Decoding methods for tasks that generate answers, each reported separately: greedy; beam_4; t=0.7,top_p=0.9 (also top_k, min_p,
    repetition_penalty); contrastive_NAME (against that run); majority_8 (self-consistency); and, guided by the reward run, best_of_8,
    reward_weighted_8 or reward_beam_4. With think=no, answers begin with empty <think></think>. win_rate always compares greedy answers, and kl samples."""
    limit: int | None = 200
    """Maximum number of held-out examples per task. None: all."""
    max_new_tokens: int | None = None
    """Maximum length of a generated answer in tokens. None: a default per task (lib/evals/report/length.py)."""
    seed: int = 0
    """Seed for sampled answers, for the choice of rows when there are more than limit, and for the bootstrap."""
    samples: int = 6
    """Number of prompts, drawn with the seed, whose answers the report shows side by side."""
    accuracy_floor: float = 0.65
    """The report checks that the reward run orders more than this share of held-out pairs correctly."""
    kl_ceiling: float = 5.0
    """The report checks that the mean KL from the reference stays below this many nats per answer."""
    usd_per_hour: float = 0.0
    """Hourly price in USD of one GPU, or of the whole machine if it has none, for the cost per 1,000 answers. 0: no cost is shown."""
    gate: list[Rule] = field(default_factory=list)
    """Conditions that must hold, or the job exits with status 1: {metric: demo.exact, run: dpo, at_least: 0.6}."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Inference engine. auto: vLLM if it is installed, unless a decoding or a quantised run requires transformers."""
    device: Literal["auto", "cpu"] = "auto"
    """Device. auto: GPUs if this machine has them, or if the cluster has or can rent them."""
    workers: int | None = None
    """Number of models that run at the same time. None: one per GPU, or one per CPU core if there is no GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic. auto: bfloat16 if the hardware supports it natively, float16 on older GPUs, otherwise float32."""

    def reference_run(self) -> str:
        return self.reference or list(self.runs)[-2]

    def data_for(self, task: str) -> Data:
        """Returns the data whose rows `task` (perplexity, preference_accuracy, win_rate, arena or kl) reads."""
        if address := self.task_data.get(task):
            whole = {"heldout": None, "heldout_fraction": 1.0, "format": "auto", "columns": {}}
            if "://" in address or Path(absolute(address)).exists():
                whole |= {
                    "name": None,
                    "split": "train",
                    "revision": None,
                }  # these select a part of `data`, not of this file
            return replace(self.data, source=address, **whole)
        return self.data

    def longest(self, task: str) -> int:
        """Returns the maximum length of an answer to `task`, in tokens."""
        if task in ("win_rate", "arena", "kl") and self.data.source == "demo":
            task = "demo"  # the prompts are the same, so the demo task's answers are reused
        if self.max_new_tokens:
            return self.max_new_tokens
        return min(length.LONGEST.get(task, 256), length.room(tuple(self.runs.values())) or 10**6)

    def decodings(self, task: str = "") -> list[Decoding]:
        """Returns the parsed decodings, with the answer length of `task`. Raises ValueError that names `decoding`."""
        return [decoding.parse(text, self.longest(task), self.seed) for text in self.decoding]

    def vllm(self) -> bool:
        """Returns whether vLLM runs the models. Raises ValueError that names `engine`."""
        if self.engine == "transformers":
            return False
        own = [d.name for d in self.decodings() if d.sampling.beams > 1 or d.sampling.amateur or d.sampling.draft]
        if self.engine == "auto":
            # reward_beam switches between two models at every chunk, and vLLM frees a model only when its process ends.
            also = any(d.head == "reward_beam" for d in self.decodings()) or any(map(_not_for_vllm, self.runs.values()))
            return vllm_generator.installed() and not own and not also
        if not vllm_generator.installed():
            raise ValueError("engine: vllm is not installed here. Say engine: auto, or pip install 'shoestring[gpu]'.")
        if own:
            raise ValueError(f"engine: vllm has no {', '.join(own)}. Say engine: transformers.")
        return True

    def challengers(self) -> list[str]:
        """Returns the runs that come after the reference."""
        names = list(self.runs)
        return names[names.index(self.reference_run()) + 1 :]


def after(job: Job) -> EvalJob:
    """Returns the evaluation that a training job's `eval` section requests: the finished run beside its base."""
    scorer = job.makes == "reward"  # a reward model is tested on pairs; it generates no answers
    base = {} if job.makes == "classifier" else {"base": job.model.base}  # which has no classes
    return EvalJob(
        run=job.run,
        runs={} if scorer else base | {job.stage: job.run},
        reward=job.run if scorer else None,
        tasks=job.eval.tasks,
        data=job.data,
        limit=job.eval.limit,
        max_new_tokens=job.eval.max_new_tokens,
        device="cpu" if job.scale.device == "cpu" else "auto",
    )


def _not_for_vllm(base: str) -> bool:
    """Returns whether only transformers loads the format of a run's weights. Missing runs are reported elsewhere."""
    path = base if "://" in base else absolute(base)
    return quantized_formats.only_transformers(path if "://" in path or Path(path).is_dir() else base)


def needs(job: EvalJob) -> list[str]:
    """Returns the problems that can be found from the settings alone."""
    out = []
    scored = [t for t in job.tasks if t in ROWS]
    if scored and job.data.reasoning == "mask":
        out.append(
            f"data.reasoning: mask leaves reasoning out of training; {', '.join(scored)} would score it. Use learn."
        )
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
        from lib.errors import nearest

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
