"""Quantisation-aware training: linear layers compute with the weights that they will have after quantisation.

    y = x · ŵᵀ,  ŵ = s · clamp(round(w / s)),  ∂L/∂w = ∂L/∂ŵ where clamp changes nothing (straight-through estimator)
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877; for language models Liu et al. 2024, https://arxiv.org/abs/2305.17888

Implemented by torchao's layers (torchao.quantization.qat). The weights w stay in full precision, also in checkpoints. At the end
of the run lib/models/quantization/schemes.py rounds them like any model's: in float32 to the same s · q; if the base is stored in
fewer bits, s is rounded to that dtype (for int8 w is too, beforehand). With jobs/distill.py and the run itself as teacher, it
recovers the quality that rounding costs.
"""

from __future__ import annotations

import importlib.util

from lib.config.job import Job


def problems(job: Job) -> list[str]:
    """Returns the reasons why the job can't train with model.qat, each naming its key."""
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
    """Replaces the linear layers of `model`, except its output layer, by layers that round their weights like `method` of
    lib/models/quantization/schemes.py. Parameters stay the same objects under the same names."""
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
