"""The TRL config of a worker: the user's settings, those derived from the job, and our own defaults."""

from __future__ import annotations

import importlib
from typing import Any

from lib.config.job import Job
from lib.distributed import strategy
from lib.models import load
from lib.runtime import hardware

DEFAULTS = {
    "report_to": "none",
    "ddp_find_unused_parameters": False,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,  # the Trainer would log the last finite loss instead of NaN
    "save_total_limit": 2,
    "include_num_input_tokens_seen": "non_padding",  # kept in checkpoints, so that tokens/s survives a resume
}
"""Our defaults that differ from TRL's; a job's `train:` section overrides them."""


def arguments(job: Job, config_class: str, workers: int, output_dir: str) -> tuple[Any, str]:
    """Builds the TRL config of `config_class` ("module:Class") for this process's hardware and `workers` processes.

    Returns (the config, the precision)."""
    import torch

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    precision = hardware.precision(job.scale.precision, device)
    per_device, accumulation = strategy.split_batch(job.scale.global_batch, job.scale.micro_batch, workers)
    user = dict(job.train)
    init = load.init_kwargs(job.model, precision, gpu) | (user.pop("model_init_kwargs", None) or {})
    strategy.allow_on_cpu(job.scale)
    module, name = config_class.split(":")
    kind = getattr(importlib.import_module(module), name)
    whole = getattr(kind, "whole_steps", False)  # the loss computes a step's rows in micro-batches itself
    derived = {
        "output_dir": output_dir,
        "per_device_train_batch_size": per_device * accumulation if whole else per_device,
        "per_device_eval_batch_size": job.scale.micro_batch,
        "gradient_accumulation_steps": 1 if whole else accumulation,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not gpu and not job.scale.strategy.startswith("zero"),
        "model_init_kwargs": init,
        **strategy.arguments(job.scale, gpu),
    }
    args = kind(**{**DEFAULTS, "dataloader_pin_memory": gpu, **user, **derived})
    if whole:
        args.mini_batch_size = per_device
    # lib/runtime/checkpoint.py deletes old checkpoints instead, because it knows which ones are complete.
    args.keep_checkpoints, args.save_total_limit = args.save_total_limit, None
    return args, precision
