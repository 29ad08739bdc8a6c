"""Models with quantised weights: recognises their format, and refuses engines and stages that don't support it.

transformers records the format of quantised weights in config.json, under quantization_config. Which engine loads which
format was measured by benchmarks/formats.py, which makes the table in benchmarks/README.md.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from lib.models import locate
from lib.run import Run


@dataclass(frozen=True)
class Format:
    name: str
    package: str
    """The module that transformers needs to load it."""
    install: str
    vllm: bool
    """Whether vLLM 0.32 loads it."""

    def distributions(self) -> tuple[str, ...]:
        """The installed package's name, where it is installed."""
        return (self.name,) if importlib.util.find_spec(self.package) else ()


FORMATS = {
    "torchao": Format("torchao", "torchao", "torchao==0.18.0", vllm=True),
    "bitsandbytes": Format("bitsandbytes", "bitsandbytes", "'bitsandbytes>=0.50'", vllm=False),
    "compressed-tensors": Format("compressed-tensors", "compressed_tensors", "compressed-tensors==0.17.0", vllm=True),
}
"""{quantization_config.quant_method: format}. Formats not listed are not checked; the engine accepts or refuses them."""


def settings(base: str) -> dict | None:
    """Returns quantization_config of a base that lib.models.locate.locate returned; None if the weights aren't quantised, or if
    config.json can't be read without downloading."""
    if base.startswith("package:"):
        return None
    run = Run(base) if base.startswith("s3://") or Path(base).is_dir() else None
    if run is None:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            cached = huggingface_hub.try_to_load_from_cache(base, "config.json")
        except HFValidationError:  # not a model name; loading it raises the error
            cached = None
        text = Path(cached).read_text(encoding="utf-8") if isinstance(cached, str) else "{}"
    else:
        file = "model/config.json" if run.is_run() else "config.json"
        text = run.read_text(file) if run.fs.exists(run.at(file)) else "{}"
    return json.loads(text).get("quantization_config")


def found(base: str) -> str | None:
    """Returns the name of a base's quantisation format; None if its weights aren't quantised."""
    return (kind.get("quant_method") or "an unnamed format") if (kind := settings(base)) else None


def only_transformers(base: str) -> bool:
    """Whether vLLM can't load this base because of its format."""
    kind = FORMATS.get(found(base) or "")
    return locate.kind(base) == "adapter" or (kind is not None and not kind.vllm)


def check_engine(key: str, base: str, vllm: bool) -> None:
    """Raises ValueError, beginning with `key`, if the engine can't load the format of `base`."""
    if vllm and locate.kind(base) == "adapter":
        raise ValueError(
            f"{key}: {base} is {locate.NOUNS['adapter']}, and vLLM loads whole models. Say engine: transformers."
        )
    kind = FORMATS.get(found(base) or "")
    if not kind:
        return
    if vllm and not kind.vllm:
        loaded = ", ".join(f.name for f in FORMATS.values() if f.vllm)
        raise ValueError(
            f"{key}: {base} holds {kind.name} weights, which vLLM doesn't load. Say engine: transformers, or quantise "
            f"its parent {_parent(base)}to a format of {loaded} (jobs/quantize.py, method: w8a8)."
        )
    if not importlib.util.find_spec(kind.package):
        raise ValueError(
            f"{key}: {base} holds {kind.name} weights, which need a package that isn't here: pip install {kind.install}"
        )


def refuse(key: str, base: str, doing: str) -> None:
    """Raises ValueError, beginning with `key`, if the weights of `base` are quantised. doing: "trained", "quantised again"."""
    if kind := found(base):
        raise ValueError(
            f"{key}: {base} holds {kind} weights, which can't be {doing}. Use what it was made of: "
            f"{_parent(base).strip() or 'the model before quantisation'}."
        )


def _parent(base: str) -> str:
    """Returns the parent's path and a space, such as "runs/sft ", if the run records one; else ""."""
    run = Run(base) if Path(base).is_dir() or base.startswith("s3://") else None
    parent = run.provenance().get("parent") if run and run.is_run() else None
    return f"{parent} " if parent else ""
