"""The quantisation methods: one function each, from a folder that from_pretrained loads to another one.

    int8          8-bit weights, a scale per output; arithmetic in the model's own dtype (torchao)
    int8_dynamic  the same weights; activations are rounded too, per token, during inference (torchao)
    w8a8          the same scheme in compressed-tensors' files, which vLLM has integer kernels for (lib/models/quantization/compressed_tensors.py)
    w4a16         4-bit weights, a scale per 32 of them, in the same files
    bnb_int8      LLM.int8(): 8 bits, outlier columns in 16 bits (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339)
    nf4           4 bits at the quantiles of a normal distribution, with the scales quantised too (QLoRA, Dettmers et al. 2023,
                  https://arxiv.org/abs/2305.14314; bitsandbytes)
    gptq_w4a16    4-bit weights, a scale per output and group of inputs, fitted to calibration rows: lib/models/quantization/gptq.py

Only GPTQ needs data. Embeddings, norms and the output layer stay unquantised. All files are safetensors; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.models.chat_template import template_sha256
from lib.models.quantization import compressed_tensors, gptq


@dataclass(frozen=True)
class Method:
    format: str
    """A key of lib/models/quantized_formats.py's FORMATS."""
    about: str
    run: Callable[..., None]
    """(source folder, target folder, dtype of the unquantised parts or None for the source's own)"""
    calibrated: bool = False
    """Whether it also takes token ids of calibration rows, and needs a Ray connection."""


def _torchao(name: str) -> Callable[[Path, Path, str | None], None]:
    def run(source: Path, target: Path, dtype: str | None) -> None:
        import torchao.quantization
        from transformers import TorchAoConfig

        _by_transformers(source, target, dtype, TorchAoConfig(getattr(torchao.quantization, name)()))

    return run


def _bitsandbytes(**settings) -> Callable[[Path, Path, str | None], None]:
    def run(source: Path, target: Path, dtype: str | None) -> None:
        from transformers import BitsAndBytesConfig

        _by_transformers(source, target, dtype, BitsAndBytesConfig(**settings))

    return run


def _compressed(name: str) -> Callable[[Path, Path, str | None], None]:
    return lambda source, target, dtype: compressed_tensors.quantize(
        source, target, dtype, compressed_tensors.SCHEMES[name]
    )


def _by_transformers(source: Path, target: Path, dtype: str | None, config) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    where = 0 if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype or "auto", quantization_config=config, device_map={"": where}
    )
    model.save_pretrained(target)


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}

METHODS = {
    "int8": Method("torchao", "8-bit weights", _torchao("Int8WeightOnlyConfig")),
    "int8_dynamic": Method(
        "torchao", "8-bit weights and activations", _torchao("Int8DynamicActivationInt8WeightConfig")
    ),
    "w8a8": Method("compressed-tensors", "8-bit weights and activations", _compressed("w8a8")),
    "w4a16": Method("compressed-tensors", "4-bit weights", _compressed("w4a16")),
    "bnb_int8": Method("bitsandbytes", "8-bit weights, outliers in 16", _bitsandbytes(load_in_8bit=True)),
    "nf4": Method("bitsandbytes", "4-bit weights", _bitsandbytes(**NF4)),
    "gptq_w4a16": Method("compressed-tensors", "4-bit weights, calibrated", gptq.quantize, calibrated=True),
}


def quantize(method: str, source: str, target: str, dtype: str | None, rows: list[list[int]] | None = None) -> str:
    """Quantises the model in folder `source` into `target`, with its tokenizer; returns the SHA-256 of the chat template.

    rows: token ids to calibrate on, for a method that needs them.
    """
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    how = METHODS[method]
    how.run(Path(source), Path(target), dtype, *([rows] if how.calibrated else []))
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(target)
    return template_sha256(tokenizer)
