"""The typed whole of one job: the sections of its YAML.

Read this file to know every key that is ours; `train:` takes the fields of the stage's own TRL config
class (see lib/fields.py) and `model.lora:` those of peft.LoraConfig. Each key is documented once, by the
string below it, and `--help` prints that string.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Model:
    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """What to start from: a run directory (local or s3://), a folder that from_pretrained loads, or a hub name."""
    revision: str | None = None
    """Commit, tag or branch of a hub model. None: its main branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. auto: float32 while all of them train, and then stored as the base's are; the compute precision where an
    adapter trains."""
    attn_implementation: str | None = None
    """Attention kernel by transformers' name: eager, sdpa, flash_attention_2 … None: sdpa on a GPU, eager on a CPU, where it is faster."""
    adapter: Literal["none", "lora"] = "none"
    """none trains every weight; lora trains low-rank adapters (Hu et al. 2021) and merges them into model/ at the end. Where one is on
    embeddings that are also the output layer, model/ gets an output layer of its own."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Fields of peft.LoraConfig, by their own names; only with adapter: lora."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """bitsandbytes: 4bit is NF4 with double quantisation (QLoRA, Dettmers et al. 2023). Needs adapter: lora."""
    qat: Literal["none", "int8", "w4a16"] = "none"
    """Quantisation-aware training: linear layers compute with weights rounded as that method of jobs/quantize.py rounds them, and model/ is
    written in its format (lib/quantize/qat.py). Needs adapter: none and strategy: ddp."""
    chat_template: str | None = None
    """A Jinja file that replaces the base's chat template. None: the one that comes with the base."""


@dataclass
class Data:
    source: str = "demo"
    """demo (generated here), a .json/.jsonl/.csv/.tsv/.parquet/.txt file (.gz too), a folder or glob of them, s3://, or a hub name."""
    name: str | None = None
    """Configuration name of a hub dataset. None: its default."""
    revision: str | None = None
    """Commit, tag or branch of a hub dataset. None: its main branch."""
    split: str = "train"
    """Split of a hub dataset to train on."""
    heldout: str | None = None
    """Held-out rows: a file, folder or s3:// address, or a split's name for a hub dataset. None: a share of source."""
    heldout_fraction: float = 0.1
    """Share of the prompts (0 to 1) set aside when heldout is None, chosen by a hash of the prompt, so that it never moves."""
    format: str = "auto"
    """auto recognises the format from the columns and prints it; a format's name insists on it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Renames columns before the format is recognised: {theirs: ours}."""
    limit: int | None = None
    """Use at most this many training rows, taken in order. None: all."""
    heldout_limit: int | None = None
    """Measure the held-out loss on at most this many rows, taken in order; the others stay unused. None: all."""
    bad_rows: Literal["error", "skip"] = "error"
    """What rows that can't be read do: stop the job and show their line numbers, or be counted and left out."""
    incomplete: Literal["error", "accept"] = "error"
    """What rows that the model would not see whole do: stop the job, or be trained on as far as they are seen. Text that the chat
    template leaves out, no end of a turn, another context than in use, more than 5% cut or dropped at train.max_length (lib/rendering)."""
    leaks: Literal["error", "drop"] = "error"
    """What held-out prompts that are also in the training rows do: stop the job, or leave the training rows out."""


@dataclass
class Scale:
    workers: int = 1
    """Training processes, one per GPU, or one per CPU core where there is no GPU."""
    min_workers: int | None = None
    """Go on with as few as this when nodes vanish, and grow back when they return. None: the number is fixed."""
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp keeps a whole copy per worker; fsdp (FSDP2) and zero3 shard weights, gradients and optimizer; zero1 the optimizer; zero2 also gradients."""
    offload: bool = False
    """Keep the sharded state in host memory: optimizer for zero1/zero2, also weights for zero3 and fsdp."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where this machine has them, or the cluster has or can rent them."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of the arithmetic. auto: bf16 where the hardware has it, fp16 on older GPUs such as the T4, else fp32."""
    global_batch: int = 32
    """Examples per optimizer step over all workers. The same job takes the same steps on 1, 2 or 4 workers."""
    micro_batch: int = 8
    """Most examples on one device at a time; gradient accumulation makes up the rest of global_batch."""
    cpus_per_worker: int = 1
    """CPU cores (and threads) of each worker."""
    max_failures: int = 3
    """How often Ray restarts the workers from the last checkpoint before the job gives up. -1: always."""


@dataclass
class Eval:
    tasks: list[str] = field(default_factory=list)
    """Tasks to score the finished run on, by the names in lib/evals/tasks.py. Empty: only the held-out loss."""
    limit: int | None = 200
    """At most this many held-out examples per task. None: all."""
    max_new_tokens: int | None = None
    """Longest answer generated, in tokens. None: as long as each task needs (lib/evals/length.py)."""


@dataclass
class Job:
    run: str
    """The run directory to write: a local path or s3://bucket/path."""
    stage: str
    """Name of the file in jobs/ that made this job."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: dict[str, Any] = field(default_factory=dict)
    """What the user set of the TRL config class, by its own field names; the class fills in the rest on the worker."""
    scale: Scale = field(default_factory=Scale)
    eval: Eval = field(default_factory=Eval)
    makes: str = "causal_lm"
    """What model/ will be: the stage's own (lib/stage/stage.py, Makes)."""

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict) -> Job:
        sections = {"model": Model, "data": Data, "scale": Scale, "eval": Eval}
        return cls(**{k: sections[k](**v) if k in sections else v for k, v in d.items()})
