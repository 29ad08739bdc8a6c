"""Checks a base without its weights (on torch's meta device): whether adapter, attention kernel and saving work with it."""

from __future__ import annotations

import re
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path

from lib.config.adapters import ADAPTERS, virtual_tokens
from lib.config.job import Job
from lib.errors import nearest
from lib.models import load, merging, soft_prompt
from lib.run import Run

LOADING = (
    "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers", "state_dict", "subfolder", "variant",
    "generation_config", "tp_plan", "tp_size", "device_mesh", "distributed_config", "use_kernels", "kernel_config", "allow_all_kernels",
    "key_mapping", "experts_implementation", "use_safetensors", "cache_dir", "force_download", "local_files_only", "token", "revision",
    "ignore_mismatched_sizes", "low_cpu_mem_usage",
)  # fmt: skip
"""Arguments of from_pretrained that aren't fields of the base's config."""


def attempt(out: list[str], section: str, given: dict, build, key: str | None = None):
    """Returns build(given). If it raises, adds the message to `out` instead, under the key that the message names, else the key
    without which build succeeds, else `key`."""
    try:
        return build(given)
    except Exception as e:  # whatever libraries raise for a value
        text = " ".join(str(e).split())[:600] or type(e).__name__
    named = [k for k in sorted(given, key=len, reverse=True) if re.search(rf"\b{k}\b", text)]
    for k in [] if named else given:
        try:
            build({other: v for other, v in given.items() if other != k})
        except Exception:  # another key is wrong
            continue
        named = [k]
        break
    key = named[0] if named else key
    out.append(f"{section}.{key}: {text}" if key else f"{section}: {text}")


def adapter(name: str, makes: str, given: dict):
    """Returns PEFT's config of the adapter `name`. Raises ValueError even if PEFT would only warn that a key is ignored."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = load.peft_config(name, given, makes)
    for text in [str(w.message) for w in caught if "ignored" in str(w.message)]:
        raise ValueError(text)
    for key, value in given.items():
        inner = getattr(made, key)
        known = [f.name for f in fields(inner)] if is_dataclass(inner) else []
        if isinstance(value, dict) and (unknown := sorted(value.keys() - {*known})) and known:
            raise ValueError(f"{key} takes no {unknown[0]}, which PEFT would drop.{nearest(unknown[0], known)}")
    return made


def folder(base: str) -> Path | None:
    """Returns the folder with the base's files; None if they aren't on this machine yet."""
    from lib.models import packaged_weights
    from lib.run import cache

    if base.startswith("package:"):
        name = base.removeprefix("package:")
        found = cache("models", f"{name}-{packaged_weights.package_version(name)}")
    elif base.startswith("s3://"):
        return None
    elif Path(base).is_dir():
        found = Path(base) / "model" if Run(base).is_run() else Path(base)
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base, "config.json")
        found = Path(cached).parent if isinstance(cached, str) else None
    return found if found and (found / "config.json").is_file() else None


def _tokens(job: Job, folder: Path) -> list[str]:
    given = {k: job.train[k] for k in ("eos_token", "pad_token") if job.train.get(k)}
    if not given:
        return []
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    return [
        f"train.{k}: {v} is no token of {job.model.base}.{nearest(v, [t for t in known if len(t) > 3])}"
        for k, v in given.items() if v not in known
    ]  # fmt: skip


def _prompt(job: Job, folder: Path) -> list[str]:
    from transformers import AutoTokenizer

    out: list[str] = []
    if ahead := virtual_tokens(job.model):
        with_tokens = lambda _: soft_prompt.with_tokens(AutoTokenizer.from_pretrained(folder), ahead)  # noqa: E731
        attempt(out, "model", {}, with_tokens, "adapter")
    return out


def _generation(folder: Path) -> list[str]:
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return []
    try:
        GenerationConfig.from_pretrained(folder).validate(strict=True)
    except ValueError as e:
        why = " ".join(str(e).split())
        return [
            f"model.base: {folder}/generation_config.json would not let the trained model be saved: {why} Mend that file."
        ]
    return []


def problems(job: Job, gpu: bool) -> list[str]:
    """Returns what a worker would find wrong with the base or its adapter, each message beginning with its key; [] if the base isn't
    on this machine yet. gpu: whether the job may train on GPUs, whose attention kernels can't be tried here."""
    name, out = job.model.adapter, []
    build = lambda given: adapter(name, job.makes, given)  # noqa: E731
    peft = attempt(out, "model.peft", job.model.peft, build) if name != "none" else None
    where = folder(job.model.base)
    if out or not where:
        return out
    return _tokens(job, where) + _generation(where) + _prompt(job, where) + _modules(job, where, peft, gpu)


def _modules(job: Job, folder: Path, peft, gpu: bool) -> list[str]:
    """Builds the base on the meta device and returns the problems with its attention and its adapter."""
    import torch
    from transformers import AttentionInterface, AutoConfig

    init = {"attn_implementation": job.model.attn_implementation} | (job.train.get("model_init_kwargs") or {})
    attention = init.pop("attn_implementation")
    known = sorted({"eager", "flash_attention_2", "flash_attention_3", *AttentionInterface().valid_keys()})
    if attention and attention not in known and "/" not in attention:  # "/": a kernel on the hub
        return [
            f"model.attn_implementation: there is no {attention}.{nearest(attention, known)} Known: {', '.join(known)}."
        ]
    out: list[str] = []

    def read(given: dict):
        asked = given.get("model_init_kwargs", {})
        return AutoConfig.from_pretrained(folder, return_unused_kwargs=True, trust_remote_code=False, **asked)

    found = (
        attempt(out, "train", {"model_init_kwargs": init}, read) if init else attempt(out, "model", {}, read, "base")
    )
    if not found:
        return out
    config, unused = found
    if unknown := sorted(unused.keys() - {*LOADING}):
        near = nearest(unknown[0], [*LOADING, *config.to_dict()])
        return [f"train.model_init_kwargs: from_pretrained takes no {unknown[0]}.{near}"]
    kind = load.auto(job.makes)

    def build(given: dict):
        here = given.get("attn_implementation") or "eager"
        with torch.device("meta"):
            return kind.from_config(config, attn_implementation="eager" if gpu or "/" in here else here)

    model = attempt(out, "model", {"attn_implementation": attention} if attention else {}, build, "base")
    if model is None or peft is None:
        return out
    if ADAPTERS[job.model.adapter].own:
        from lib.models import added

        attempt(out, "model", {}, lambda _: added.install(model, job.model.adapter, peft), "adapter")
        return out
    out += _unmatched(peft, [n for n, _ in model.named_modules() if n], [n for n, _ in model.named_parameters()])
    rows = model.get_input_embeddings().num_embeddings
    indices = getattr(peft, "trainable_token_indices", None) or []
    if high := [i for one in (indices.values() if isinstance(indices, dict) else [indices]) for i in one if i >= rows]:
        out.append(f"model.peft.trainable_token_indices: the base has tokens 0 to {rows - 1}, not {high[0]}.")
    if out:
        return out
    attempt(out, "model.peft", job.model.peft, lambda given: _adapted(build({}), job, given))
    return out


def _adapted(model, job: Job, given: dict) -> None:
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    peft = adapter(job.model.adapter, job.makes, given)
    load.without_weights(peft)
    adapted = get_peft_model(model, peft, low_cpu_mem_usage=True)
    merging.check(adapted)
    if job.makes != "reward" and isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "TRL's trainers read the output layer's own weights: an adapter of target_modules there would not train."
        )


def _unmatched(peft, names: list[str], parameters: list[str]) -> list[str]:
    """Returns problems for names in the adapter's lists that match nothing in the base. PEFT ignores them if another name matches."""
    last = sorted({n.rsplit(".", 1)[-1] for n in names if not n.rsplit(".", 1)[-1].isdigit()})
    out = []
    for key in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "feedforward_modules"):
        wanted, there = getattr(peft, key, None) or [], parameters if key == "target_parameters" else names
        if wanted == "all-linear":
            continue
        matches = _matches if isinstance(wanted, str) else lambda one, n: n == one or n.endswith(f".{one}")
        for one in [wanted] if isinstance(wanted, str) else sorted(wanted):
            if not any(matches(one, n) for n in there):
                has = f" It has {', '.join(last)}." if there is names else ""
                out.append(f"model.peft.{key}: {one} matches nothing in the base.{nearest(one, last)}{has}")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(peft, key, None) or {}:
            if not any(_matches(rf"(.*\.)?({pattern})", n) for n in names):
                out.append(f"model.peft.{key}: {pattern} matches nothing in the base.{nearest(pattern, last)}")
    return out


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False
