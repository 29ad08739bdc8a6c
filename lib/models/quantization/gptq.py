"""GPTQ: rounds weights one column after the other; the columns that are left compensate for the error of each.

argmin_q ‖W X − Ŵ X‖², where X is the layer's input on calibration rows: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.
Done by llm-compressor 0.14, which needs other versions of transformers and compressed-tensors than this project. So it runs in a
Ray task whose environment pip builds from this one and PACKAGES. This needs a package index; Ray caches the environment for the
session.
"""

from __future__ import annotations

from pathlib import Path

PACKAGES = ["llmcompressor==0.14.0.1"]
ROWS, TOKENS = 256, 512
"""Maximum number of calibration rows, and of tokens per row."""


def quantize(source: Path, target: Path, dtype: str | None, rows: list[list[int]]) -> None:
    """Quantises the model in `source` into `target`. rows: token ids to calibrate on. Ray must be connected. Raises RayError if
    the environment can't be built."""
    import ray

    from lib.config.job import Scale
    from lib.runtime import hardware, logs, waiting

    gpu = int(hardware.gpus() > 0)
    env = {"pip": {"packages": PACKAGES}, "env_vars": hardware.worker_env(Scale(), bool(gpu))}
    env["config"] = {"setup_timeout_seconds": 1800}  # a copy of this environment, and a download
    task = ray.remote(num_cpus=1, num_gpus=gpu, max_calls=1, runtime_env=env)(_quantize)
    with waiting.of_cluster(1, {"CPU": 1, "GPU": gpu}):
        ray.get(task.remote(str(source), str(target), dtype, rows, logs.current()))


def calibration(job, source: str) -> list[list[int]]:
    """Returns training rows of `job.data` (of a QuantizeJob) as token ids of the model in folder `source`."""
    from lib import data
    from lib.models.encode import Encoder

    encoder, found = Encoder(source), data.load(job.data, ("chat", "text")).train
    rows = (found[i] for i in range(min(ROWS, len(found))))
    read = [encoder.plain(r["text"]) if "text" in r else encoder.render(r["messages"], False, r.get("tools")) for r in rows]  # fmt: skip
    return [ids[:TOKENS] for ids in read]


def _quantize(source: str, target: str, dtype: str | None, rows: list[list[int]], log: str | None) -> None:
    """Runs in llm-compressor's environment. log: the file for its output."""
    from lib.runtime import device, logs

    device.of_worker()  # raises if the GPU can't be used
    if log:
        logs.keep(Path(log))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto")
    inputs = {m.in_features for m in model.model.modules() if isinstance(m, torch.nn.Linear)}
    # The sizes are those of vLLM's kernels.
    size = next((g for g in (128, 64, 32) if all(i % g == 0 for i in inputs)), None)
    if not size:
        raise ValueError(
            f"model.base: layers of {sorted(inputs)} inputs can't be split into groups of 32. Choose method: w8a8."
        )
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group",
        "group_size": size,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    modifier = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    read = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]})
    oneshot(model=model, dataset=read, recipe=modifier, num_calibration_samples=len(rows), max_seq_length=TOKENS, output_dir=target)  # fmt: skip
