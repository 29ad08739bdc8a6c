"""Integer weights in the compressed-tensors format, which vLLM has kernels for.

    w8a8    each row of a linear layer's weight has a scale s = max|w| / 127 and is stored as q = round(w / s), 8 bits, so that
            |w − s q| ≤ s / 2. During inference activations are rounded the same way, each token with a scale of its own ("dynamic").
            Dettmers et al. 2022, https://arxiv.org/abs/2208.07339 (vector-wise quantisation, without its outlier columns);
            Yao et al. 2022, https://arxiv.org/abs/2206.01861 (token-wise activations)
    w4a16   each 32 weights of a row have a scale s = max|w| / 7.5 and are stored as q = round(w / s) in −8 … 7, 4 bits, eight to
            an int32; arithmetic in the model's own dtype. Rounds as torchao's int4 and GPTQ's baseline do (Frantar et
            al. 2022, https://arxiv.org/abs/2210.17323, RTN)

No data is needed. Embeddings, norms and the output layer stay unquantised. Needs only torch and safetensors, and works on one
file at a time, so its memory use is that of the model's largest file.

Shapes: O outputs, I inputs of a linear layer, G groups of its inputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GROUP = 32
"""Number of weights that share a scale in w4a16."""


def rows(weight_OI):
    """Quantises one weight by rows. Returns (q_OI int8, s_O1 in the weight's own dtype)."""
    import torch

    # The scale is rounded to its stored dtype before the weights are divided by it. A bfloat16 scale may be 0.4% smaller, but
    # 127 × 1.004 is below 127.5, so the largest weight still rounds to 127, with an error of at most s / 2.
    scale_O1 = (weight_OI.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-8).to(weight_OI.dtype)
    q_OI = (weight_OI.float() / scale_O1.float()).round().clamp(-127, 127)
    return q_OI.to(torch.int8), scale_O1


def groups(weight_OI):
    """Quantises one weight by groups. Returns (q_OI int8 from −8 to 7, s_OG float32). Raises ValueError if 32 doesn't divide I."""
    import torch

    outputs, inputs = weight_OI.shape
    if inputs % GROUP:
        raise ValueError(f"w4a16 needs a multiple of {GROUP} inputs, and a layer has {inputs}. Choose method: w8a8.")
    grouped_OGI = weight_OI.float().reshape(outputs, inputs // GROUP, GROUP)
    scale_OG = (grouped_OGI.abs().amax(2) / 7.5).clamp(min=1e-8)
    # Multiplies by 1 / s as torchao does (lib/models/quantization/qat.py): w = −max|w| lies halfway between −8 and −7, so rounding
    # errors decide.
    q_OGI = (grouped_OGI * (1.0 / scale_OG)[..., None]).round().clamp(-8, 7)
    return q_OGI.to(torch.int8).reshape(outputs, inputs), scale_OG


def packed(q_OI):
    """Returns (O, I / 8) int32 with eight 4-bit integers q + 8 each, the first in the lowest bits."""
    import torch

    eight = (q_OI.to(torch.int32) + 8).reshape(q_OI.shape[0], -1, 8)
    return (eight << (4 * torch.arange(8, dtype=torch.int32))).sum(2, dtype=torch.int32)


def _eight_bits(weight_OI, dtype) -> dict:
    q_OI, scale_O1 = rows(weight_OI.to(dtype))
    return {"weight": q_OI, "weight_scale": scale_O1}


def _four_bits(weight_OI, dtype) -> dict:
    import torch

    q_OI, scale_OG = groups(weight_OI)
    shape = torch.tensor(weight_OI.shape)
    return {"weight_packed": packed(q_OI), "weight_scale": scale_OG.to(dtype), "weight_shape": shape}


@dataclass(frozen=True)
class Scheme:
    format: str
    """Name of the format in compressed-tensors."""
    weights: dict
    activations: dict | None
    tensors: Callable
    """(weight (O, I), dtype of its scales) → the tensors stored in its place, {name: tensor}."""


SCHEMES = {
    "w8a8": Scheme(
        "int-quantized",
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
        _eight_bits,
    ),
    "w4a16": Scheme(
        "pack-quantized",
        {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False},
        None,
        _four_bits,
    ),
}


def quantize(source: Path, target: Path, dtype: str | None, scheme: Scheme) -> None:
    """Quantises the model folder `source` into `target`. dtype: of the unquantised parts; None: the source's own.

    Raises ValueError if the folder has no safetensors, or if its files name the linear layers differently.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model.base: {source} has no .safetensors files. Load the model and save it with save_pretrained."
        )
    linear, kept = _layers(source)
    target.mkdir(parents=True, exist_ok=True)
    index, done = {}, set()
    for file in files:
        tensors = {}
        with safe_open(file, "pt") as f:
            for name in f.keys():  # noqa: SIM118  (safe_open has no __iter__)
                tensor = f.get_tensor(name)
                kind = getattr(torch, dtype) if tensor.is_floating_point() and dtype else tensor.dtype
                layer = name.removesuffix(".weight")
                if name.endswith(".weight") and layer in linear:
                    tensors |= {f"{layer}.{part}": stored for part, stored in scheme.tensors(tensor, kind).items()}
                    done.add(layer)
                else:
                    tensors[name] = tensor.to(kind)
        save_file(tensors, target / file.name, {"format": "pt"})
        index |= {name: (file.name, t.numel() * t.element_size()) for name, t in tensors.items()}
    if missing := sorted(linear - done):
        raise ValueError(
            f"model.base: {len(missing)} of {len(linear)} linear layers have no weight under their name in {source}, such as {missing[0]}. "
            "Choose method: int8."
        )
    if len(files) > 1:
        whole = {"metadata": {"total_size": sum(n for _, n in index.values())}}
        whole["weight_map"] = {name: file for name, (file, _) in sorted(index.items())}
        (target / "model.safetensors.index.json").write_text(json.dumps(whole, indent=1))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    group = {"targets": ["Linear"], "weights": scheme.weights, "input_activations": scheme.activations}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(kept),
    }
    if dtype:
        config["dtype"] = dtype
        config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", target)


def _layers(source: Path) -> tuple[set[str], set[str]]:
    """Returns the names of the linear layers to quantise, and of those to skip: the output layer. Reads no weights."""
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
