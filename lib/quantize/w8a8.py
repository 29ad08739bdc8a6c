"""W8A8: weights and activations in 8-bit integers, in the compressed-tensors format that vLLM runs with integer kernels.

Each row of a linear layer's weight has a scale s = max|w| / 127 and is kept as q = round(w / s), so |w − s q| ≤ s / 2.
Activations are rounded the same way while answering, each token by a scale of its own ("dynamic"). No data is needed.
Dettmers et al. 2022, https://arxiv.org/abs/2208.07339 (vector-wise quantisation, without its outlier columns); Yao et
al. 2022, https://arxiv.org/abs/2206.01861 (token-wise activations). Embeddings, norms and the output layer stay as they are.

Written with torch and safetensors alone, one file at a time: the largest file of the model is what it takes in memory.

Shapes: O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def rows(weight_OI):
    """(q_OI int8, s_O1 in the weight's own type) of one weight."""
    import torch

    # The scale is rounded to the type that it's stored in before the weights are divided by it: a bfloat16 scale may come
    # out 0.4% smaller, 127 × 1.004 is below 127.5, so that the largest weight still rounds to 127 and stays within s / 2.
    scale_O1 = (weight_OI.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-8).to(weight_OI.dtype)
    q_OI = (weight_OI.float() / scale_O1.float()).round().clamp(-127, 127)
    return q_OI.to(torch.int8), scale_O1


def quantize(source: Path, target: Path, dtype: str | None) -> None:
    """Writes `target` from the model folder `source`. dtype: of what stays unquantised; None: as it is.

    Raises ValueError for a folder without safetensors, or whose linear layers have other names in the files.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model.base: {source} has no .safetensors files. Load it and save_pretrained it once.")
    linear, kept = _layers(source)
    target.mkdir(parents=True, exist_ok=True)
    index, done = {}, set()
    for file in files:
        tensors = {}
        with safe_open(file, "pt") as f:
            for name in f.keys():  # noqa: SIM118  (safe_open has no __iter__)
                tensor = f.get_tensor(name)
                if tensor.is_floating_point() and dtype:
                    tensor = tensor.to(getattr(torch, dtype))
                layer = name.removesuffix(".weight")
                if name.endswith(".weight") and layer in linear:
                    tensors[name], tensors[f"{layer}.weight_scale"] = rows(tensor)
                    done.add(layer)
                else:
                    tensors[name] = tensor
        save_file(tensors, target / file.name, {"format": "pt"})
        index |= {name: (file.name, t.numel() * t.element_size()) for name, t in tensors.items()}
    if missing := sorted(linear - done):
        raise ValueError(
            f"model.base: {len(missing)} of {len(linear)} linear layers have other names in {source}, such as {missing[0]}. "
            "Choose method: int8."
        )
    if len(files) > 1:
        whole = {"metadata": {"total_size": sum(n for _, n in index.values())}}
        whole["weight_map"] = {name: file for name, (file, _) in sorted(index.items())}
        (target / "model.safetensors.index.json").write_text(json.dumps(whole, indent=1))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = CONFIG | {"ignore": sorted(kept)}
    if dtype:
        config["dtype"] = dtype
        config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", target)


def _layers(source: Path) -> tuple[set[str], set[str]]:
    """Names of the linear layers to quantise, and of those to leave: the output layer. No weight is read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    output = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    kept = {name for name, m in linear.items() if m is output}
    if not linear.keys() - kept:
        raise ValueError(f"model.base: {source} has no torch.nn.Linear layers to quantise.")
    return linear.keys() - kept, kept
