"""How the model is spread over workers: DDP, FSDP2 (Zhao et al. 2023) or DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

from __future__ import annotations

from lib.config.job import Scale

WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp": "FSDP",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
"""{strategy: class name of the wrapped model}. Checked because accelerate silently ignores a strategy that it considers unsupported."""


def split_batch(global_batch: int, micro_batch: int, workers: int) -> tuple[int, int]:
    """Returns (examples per device, accumulation steps) with per_device × accumulation × workers = global_batch, where
    per_device is the largest divisor not above `micro_batch`. Raises ValueError if `workers` doesn't divide global_batch."""
    if global_batch < 1 or micro_batch < 1:
        raise ValueError("scale.global_batch and scale.micro_batch must be at least 1")
    per_worker, rest = divmod(global_batch, workers)
    if rest or not per_worker:
        below, above = global_batch - rest, global_batch - rest + workers
        options = " or ".join(str(n) for n in (below, above) if n)
        raise ValueError(
            f"scale.global_batch: {global_batch} examples can't be shared equally by {workers} workers "
            f"(scale.workers). Use {options}."
        )
    per_device = next(n for n in range(min(micro_batch, per_worker), 0, -1) if per_worker % n == 0)
    return per_device, per_worker // per_device


def arguments(scale: Scale, gpu: bool) -> dict:
    """Returns the fields of TrainingArguments that select `scale.strategy`."""
    if scale.strategy == "ddp":
        return {}
    if scale.strategy == "fsdp":
        return {"fsdp": True, "fsdp_config": {"version": 2, "cpu_offload": scale.offload and gpu}}
    stage = int(scale.strategy[-1])
    zero = {"stage": stage, "overlap_comm": gpu, "contiguous_gradients": True}
    if scale.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if scale.offload and stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    names = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "deepspeed": dict.fromkeys(names, "auto")
        | {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "zero_optimization": zero}
        # DeepSpeed considers torch's AdamW "untested", and its own CPUAdam would have to be compiled on the node.
        | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    }


def allow_on_cpu(scale: Scale) -> None:
    """Makes accelerate 1.15 run FSDP and DeepSpeed on CPU workers over gloo; by default it silently ignores them there.

    Call it in the worker before TrainingArguments are built. Does nothing for ddp or if there is a GPU.
    """
    import torch

    if scale.strategy == "ddp" or torch.cuda.is_available():
        return
    import accelerate.state
    from accelerate.utils import DistributedType

    kind = DistributedType.MULTI_XPU if scale.strategy == "fsdp" else DistributedType.NO
    accelerate.state.PartialState._prepare_backend = lambda self, *a, **k: ("gloo", kind)
    if scale.strategy != "fsdp":
        import deepspeed.ops

        # Its shared-memory collectives need a compiler on the node; plain gloo gives the same sums.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def check_wrapped(trainer, scale: Scale) -> None:
    """Raises RuntimeError if, after training has started, the model isn't wrapped as `scale.strategy` requires."""
    name = type(trainer.model_wrapped).__name__
    if scale.workers > 1 and WRAPPED[scale.strategy] not in name:
        raise RuntimeError(f"scale.strategy: {scale.strategy} did not take effect: the model is a {name}")
