"""The typed configuration of a job, one class per section of its YAML.

This file defines all of the project's own keys. The keys of `train:` are the fields of the stage's TRL config class (see
lib/config/trl_fields.py), and those of `model.peft:` the fields of the adapter's config class in PEFT. The string below each key is its
only documentation; `--help` prints it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Model:
    """model: the base model and which of its weights train"""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """The model to start from: a run directory (local or s3://), a folder that from_pretrained loads, a hub name, or none: random
    weights (only jobs/pretrain.py)."""
    revision: str | None = None
    """Commit, tag or branch of a hub model. None: its main branch."""
    size: Literal["4m", "10m", "30m", "40m", "110m", "350m"] | None = None
    """Only with base: none, which jobs/pretrain.py starts from: random weights in the shape of a model of this size."""
    tokenizer: str | None = None
    """Only with base: none: a run, folder or hub name whose tokenizer is used. None: a tokenizer is trained on the training rows."""
    vocab_size: int | None = None
    """Only with base: none: number of tokens of the trained tokenizer. None: 8192."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in training. auto: float32 if all weights train (model/ is then saved in the base's type), the compute
    precision if an adapter trains."""
    attn_implementation: str | None = None
    """Attention kernel by its name in transformers: eager, sdpa, flash_attention_2 … None: sdpa on a GPU; eager on a CPU, where it is
    faster."""
    adapter: Literal[
        "none",
        "lora",
        "dora",
        "rslora",
        "pissa",
        "adalora",
        "vera",
        "ia3",
        "loha",
        "lokr",
        "oft",
        "miss",
        "ln_tuning",
        "parallel",
        "prompt",
        "p_tuning",
        "prefix",
        "houlsby",
        "pfeiffer",
    ] = "none"
    """none trains every weight. The others train an adapter (lib/config/adapters.py names their papers) and merge it into model/ at the
    end; prompt and p_tuning become new tokens of model/; prefix, houlsby and pfeiffer stay apart, in model/adapter/ beside model/base/. If
    an adapter is on input embeddings that are tied to the output layer, they are untied in model/."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Fields of the adapter's config class, most of them PEFT's, under their own names."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Quantises the frozen base with bitsandbytes: 4bit is NF4 with double quantisation (QLoRA, Dettmers et al. 2023). Needs
    adapter: lora, or another that trains on it."""
    qat: Literal["none", "int8", "w4a16"] = "none"
    """Quantisation-aware training: linear layers compute with weights rounded as by this method of jobs/quantize.py, and model/ is
    saved in its format (lib/models/quantization/qat.py). Needs adapter: none and strategy: ddp."""
    chat_template: str | None = None
    """A Jinja file that replaces the base's chat template. None: the base's own."""


@dataclass
class Data:
    """data: training rows and held-out rows"""

    source: str = "demo"
    """demo or demo_steps (generated on the fly), a .json/.jsonl/.csv/.tsv/.parquet/.txt file (.gz too), a folder or glob of them, an s3:// address, or
    the name of a hub dataset."""
    name: str | None = None
    """Configuration name of a hub dataset. None: its default configuration."""
    revision: str | None = None
    """Commit, tag or branch of a hub dataset. None: its main branch."""
    split: str = "train"
    """Split of a hub dataset to train on."""
    heldout: str | None = None
    """Held-out rows: a file, folder or s3:// address, or the split's name for a hub dataset. None: a share of source."""
    heldout_fraction: float = 0.1
    """Share of the prompts (0 to 1) held out when heldout is None. A hash of the prompt decides, so the choice is the same every time."""
    format: str = "auto"
    """Name of the row format. auto: recognised from the columns, and printed. text, with source: demo: its plain texts, not its chats."""
    columns: dict[str, str] = field(default_factory=dict)
    """Renames columns before the format is recognised: {name in the file: name in the format}."""
    limit: int | None = None
    """Maximum number of training rows, taken in order. None: all."""
    heldout_half: Literal["both", "first", "second"] = "both"
    """Uses only half of the held-out rows, by another hash of the prompt; the other half stays unused. A search (python -m tune) compares
    its trials on the first half and reports on the second."""
    heldout_limit: int | None = None
    """Maximum number of rows on which the held-out loss is measured, taken in order; the others stay unused. None: all."""
    reasoning: Literal["learn", "mask", "remove"] | None = None
    """Reasoning in answers: a column or key reasoning_content (also reasoning, rationale, thought, thinking), text in <think>, or GSM8K's
    before ####. learn: written into the answer between <think> and </think>, and learnt. mask: the same, without loss on it (only
    jobs/sft.py). remove: left out. None: as the chat template writes it."""
    bad_rows: Literal["error", "skip"] = "error"
    """Rows that can't be read. error: stop the job and print their line numbers. skip: leave them out and report how many."""
    incomplete: Literal["error", "accept"] = "error"
    """Rows that the model would not see whole: the chat template leaves text out, a turn has no end, the context differs from that in
    use, or train.max_length cuts or drops more than 5% (lib/rendering). error: stop the job. accept: train on the part that is seen."""
    leaks: Literal["error", "drop"] = "error"
    """Held-out prompts that are also in the training rows. error: stop the job. drop: leave those training rows out."""


@dataclass
class Scale:
    """scale: workers, devices and batches"""

    workers: int = 1
    """Number of training processes. Each uses one GPU, or cpus_per_worker cores where there is no GPU."""
    min_workers: int | None = None
    """Smallest number of workers to continue with when nodes are lost; the run grows back when nodes return. None: the number is fixed."""
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp keeps a full copy on each worker. zero1 shards the optimizer state, zero2 also gradients, zero3 and fsdp (FSDP2) also weights."""
    offload: bool = False
    """Keep the sharded state in host memory: the optimizer state with zero1 and zero2, also the weights with zero3 and fsdp."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs if this machine has any, or if the cluster has or can rent them; otherwise CPUs."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute precision. auto: bf16 if the hardware supports it, fp16 on older GPUs such as the T4, otherwise fp32."""
    global_batch: int = 32
    """Examples per optimizer step over all workers. The same job takes the same steps on 1, 2 or 4 workers."""
    micro_batch: int = 8
    """Maximum number of examples on a device at a time; gradient accumulation makes up the rest of global_batch."""
    cpus_per_worker: int = 1
    """CPU cores (and threads) per worker."""
    max_failures: int = 3
    """How often Ray may restart the workers from the last checkpoint before the job fails. -1: no limit."""


@dataclass
class Schedule:
    """schedule: settings that change during training, as a search with population based training finds them"""

    learning_rate: dict[str, float] = field(default_factory=dict)
    """{step: value}: after that step train.learning_rate is the value. Warm-up and decay (train.lr_scheduler_type) go on from it."""
    weight_decay: dict[str, float] = field(default_factory=dict)
    """{step: value}: after that step train.weight_decay is the value."""


@dataclass
class Eval:
    """eval: evaluation of the finished run"""

    tasks: list[str] = field(default_factory=list)
    """Tasks to evaluate the finished run on, by their names in lib/evals/registry.py. Empty: only the held-out loss."""
    limit: int | None = 200
    """Maximum number of held-out examples per task. None: all."""
    max_new_tokens: int | None = None
    """Maximum length of a generated answer, in tokens. None: as long as each task needs (lib/evals/report/length.py)."""


@dataclass
class Rollouts:
    """rollouts: where a model that learns from rewards draws its answers"""

    workers: int = 0
    """Processes that draw them, on any nodes of the cluster, each on a GPU or scale.cpus_per_worker cores as a training worker. 0: the
    training workers draw them."""
    batch: int = 16
    """Answers that such a process draws at a time, rounded up to whole groups of answers to a prompt."""
    without: Literal["draw", "wait"] = "draw"
    """While none of them is up. draw: a training worker draws in its place. wait: for one to start."""


@dataclass
class Job:
    """The whole configuration of a training job, as stored in job.yaml."""

    run: str
    """The run directory to write: a local path or s3://bucket/path."""
    stage: str
    """Name of the stage, and of its file in jobs/."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: dict[str, Any] = field(default_factory=dict)
    """The fields of the TRL config class that the user set, under their own names. The workers take the class's defaults for the rest."""
    scale: Scale = field(default_factory=Scale)
    schedule: Schedule = field(default_factory=Schedule)
    eval: Eval = field(default_factory=Eval)
    rewards: dict[str, float] | None = None
    """{name of a reward: its weight} of a stage that learns from rewards (lib/methods/rl/rewards.py); None for all others."""
    rollouts: Rollouts | None = None
    """Of a stage that learns from rewards; None for all others."""
    makes: str = "causal_lm"
    """Kind of model that model/ will hold, set by the stage (lib/stage/stage.py, Makes)."""

    def to_dict(self) -> dict:
        return {k: v for k, v in asdict(self).items() if k not in ("rewards", "rollouts") or v is not None}

    @classmethod
    def from_dict(cls, d: dict) -> Job:
        known = SECTIONS | REWARDED
        return cls(**{k: known[k](**v) if k in known and v is not None else v for k, v in d.items()})


SECTIONS: dict[str, Any] = {"model": Model, "data": Data, "scale": Scale, "schedule": Schedule, "eval": Eval}
"""{section of the YAML: its class}; `train`, whose class the stage chooses, is missing."""
REWARDED: dict[str, Any] = {"rollouts": Rollouts}
"""More sections, of stages that learn from rewards."""
