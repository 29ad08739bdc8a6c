"""Quantisation-aware training: linear layers compute with the weights that they will have once quantised.

    y = x · ŵᵀ,  ŵ = s · clamp(round(w / s)),  ∂L/∂w = ∂L/∂ŵ where the clamp is open (straight-through estimator)
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877; for language models Liu et al. 2024, https://arxiv.org/abs/2305.17888

torchao's layers do it (torchao.quantization.qat). The weights w stay in full precision, in checkpoints too; at the end of the
run lib/models/quantization/schemes.py rounds them as it would any model's: to the same s · q in float32; where the base is stored in fewer
bits, s is rounded to those (with int8 w too, before it). With jobs/distill.py and the run itself as teacher, it heals what
rounding costs.
"""

from __future__ import annotations

import importlib.util

from lib.config.job import Job


def problems(job: Job) -> list[str]:
    """Why the job can't train so, each naming its key."""
    m, out = job.model, []
    if m.qat == "none":
        return out
    if m.adapter != "none":
        out.append(f"model.qat: {m.qat} trains the weights themselves. Set model.adapter: none, or model.qat: none.")
    if job.scale.strategy != "ddp":
        out.append(f"model.qat: {m.qat} runs with scale.strategy: ddp, not {job.scale.strategy}.")
    if job.makes == "reward":
        out.append("model.qat: a reward model isn't quantised here. Leave it out.")
    if not importlib.util.find_spec("torchao"):
        out.append("model.qat: needs torchao: pip install -e '.[quantize]'.")
    return out


def prepare(model, method: str) -> None:
    """Swaps the linear layers of `model`, but for its output layer, for such that round their weights as `method` of
    lib/models/quantization/schemes.py does. Parameters stay the same objects, by the same names."""
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    from lib.models.quantization.compressed_tensors import GROUP

    weights = {
        "int8": lambda: IntxFakeQuantizeConfig(torch.int8, "per_channel"),
        "w4a16": lambda: IntxFakeQuantizeConfig(torch.int4, group_size=GROUP),
    }[method]()
    output = model.get_output_embeddings()
    chosen = lambda module, name: isinstance(module, torch.nn.Linear) and module is not output  # noqa: E731
    quantize_(model, QATConfig(weight_config=weights, step="prepare"), chosen)
