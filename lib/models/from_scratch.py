"""`model.base: none`: a base with random weights, in the shape of a size, with a tokenizer trained on the training rows.

It is made before the plan, in the cache, and copied to base/ of the run when training starts. It is a finished run itself, so it can be
evaluated: jobs/eval.py --runs.start runs/pretrain/base --runs.end runs/pretrain.

    python -m lib.models.from_scratch <<< '{"makes": "causal_lm", …}'        in a process of its own, since the driver doesn't import torch
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from lib import data
from lib.config.job import Job, Model
from lib.models import locate
from lib.run import Run, absolute, cache
from lib.runtime import manifest

SHAPES = {"4m": (2, 128), "10m": (4, 256), "30m": (4, 512), "40m": (8, 512), "110m": (12, 768), "350m": (24, 1024)}
"""{size: (layers, width)}, with heads of 64: BERT's tiny to medium (Turc et al. 2019, https://arxiv.org/abs/1908.08962), base and large;
110m and 350m are also those of GPT-2 small and medium. The names count weights with a vocabulary of 30,522."""

VOCABULARY = 8192
POSITIONS = 512
"""At least as many positions as BERT has."""
ROWS, CHARACTERS = 100_000, 64 << 20
"""Most text that a tokenizer is trained on; the limit of rows holds for data of more than 64 MB."""


def new_heads(base: str, objective: str) -> list[str]:
    """Returns what a located base has no head for and train.objective needs one: these weights start at random."""
    if objective not in ("mlm", "nsp"):
        return []
    names = " ".join((locate.config(base) or {}).get("architectures") or [])
    heads = {
        "masked tokens": locate.kind(base) == "encoder",
        "next segments": objective == "nsp" and "PreTraining" not in names,
    }
    return [head for head, new in heads.items() if new and names]


def base(job: Job, rows: tuple[str, ...]) -> tuple[tuple[str, str], str]:
    """Returns ((path, identity) as lib.models.locate.locate does, a line that describes the model).

    Raises ValueError, naming the key, if the settings or the data don't allow it.
    """
    m = job.model
    if m.size is None:
        raise ValueError(f"model.size: name one for model.base: none. Known: {', '.join(SHAPES)}.")
    for key, off in (("adapter", "none"), ("quantization", "none"), ("qat", "none"), ("revision", None)):
        if getattr(m, key) != off:
            raise ValueError(f"model.{key}: {getattr(m, key)} needs a trained model.base, and it is none.")
    if m.tokenizer and m.vocab_size:
        raise ValueError("model.vocab_size: the tokens are those of model.tokenizer. Leave one of them out.")
    asked: dict[str, Any] = {
        "makes": job.makes, "size": m.size, "seed": job.train.get("seed", 42), "objective": job.train.get("objective"),
        "positions": max(POSITIONS, job.train.get("max_length", 0) + 3),
    }  # fmt: skip
    texts: list[str] = []
    if m.tokenizer:
        asked["tokenizer"], identity = locate.locate_for("model.tokenizer", m.tokenizer)
    else:
        identity, texts = _texts(job, rows)
        asked["vocab_size"] = m.vocab_size or VOCABULARY
    made_of = {
        "code": [Path(__file__).read_text(), Path(__file__).with_name("new_tokenizer.py").read_text()],
        "of": identity,
    }
    made_of |= {"packages": [version(p) for p in ("torch", "transformers", "tokenizers")], "asked": asked}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    run = Run(str(cache("bases", key)))
    Path(run.path).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{run.path}.lock"):
        if not run.is_run() or not run.finished():
            shutil.rmtree(run.path, ignore_errors=True)  # left by a process that was killed
            _make(run, asked | {"texts": texts, "path": run.path})
    return locate.locate(run.path), run.provenance()["description"]


def asked(model: Model) -> Model:
    """Returns the model section without the settings that the base was made from, which base/job.yaml keeps."""
    return replace(model, size=None, tokenizer=None, vocab_size=None)


def resumed(model: Model, run: Run) -> Model:
    """Returns the model section of a run to resume: base/ instead of none, if the run has one."""
    made = model.base == "none" and run.fs.exists(run.at("base/job.yaml"))
    return replace(asked(model), base=run.at("base")) if made else model


def placed(job: Job) -> Job:
    """Copies a base that is in the cache into the run. Returns the job that starts from the copy."""
    if not Path(job.model.base).is_relative_to(absolute(str(cache("bases")))):
        return job
    run = Run(job.run)
    run.put(job.model.base, "base")
    return replace(job, model=replace(job.model, base=run.at("base")))


def _texts(job: Job, rows: tuple[str, ...]) -> tuple[str, list[str]]:
    """Returns (identity of the rows, the training texts)."""
    texts: list[str] = []

    def keep(kind: str, side: str, row: dict, place: str) -> None:
        nonlocal size
        if side == "train" and size < CHARACTERS:
            size += len(row["text"])
            texts.append(row["text"])

    size = 0
    found = data.check(job.data, rows, True, keep, ROWS)
    if not texts:
        raise ValueError(
            f"model.tokenizer: {job.data.source} is read by the workers only, so no tokenizer can be trained on it. Name one."
        )
    return found.sha256, texts


def _make(run: Run, request: dict) -> None:
    if "torch" in sys.modules:
        return make(run, request)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "lib.models.from_scratch"]
    done = subprocess.run(command, input=json.dumps(request), env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1].removeprefix("ValueError: ")
        raise ValueError(last if last.startswith("model.") else f"model.base: no model could be made: {last}")


def make(run: Run, request: dict) -> None:
    """Writes a base as a finished run. request: as `base` makes it. Raises ValueError if the tokenizer doesn't fit."""
    import torch
    import yaml
    from transformers import AutoTokenizer

    from lib.models import load, new_tokenizer

    makes = request["makes"]
    if request.get("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(locate.path(request["tokenizer"]))
        by = f"the tokenizer of {request['tokenizer']}"
        missing = [role for role in new_tokenizer.SPECIAL[makes] if role and getattr(tokenizer, role) is None]
        if missing:
            raise ValueError(
                f"model.tokenizer: {request['tokenizer']} has no {missing[0]}, which {locate.NOUNS[makes]} needs."
            )
    else:
        tokenizer = new_tokenizer.train(request["texts"], makes, request["vocab_size"])
        by = f"a tokenizer trained on {len(request['texts']):,} texts"
    torch.manual_seed(request["seed"])
    # The class for pre-training has BERT's second head.
    how = load.auto("discriminator" if request["objective"] == "nsp" else makes)
    model = how.from_config(config(makes, request["size"], tokenizer, request["positions"]))
    folder = Path(run.at("model"))
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    weights = sum(p.numel() for p in model.parameters())
    files = manifest.hashes(folder)
    shown = {k: v for k, v in request.items() if k not in ("texts", "path")}
    run.write_text("job.yaml", yaml.safe_dump({"run": run.path, "stage": "base", "makes": makes, "asked": shown}))
    run.write_json(
        "provenance.json",
        {
            "status": "finished",
            "stage": "base",
            "description": f"none: {type(model).__name__} with {weights / 1e6:.1f}M random weights (seed {request['seed']}), "
            f"{len(tokenizer):,} tokens, {by}",
            "model_sha256": manifest.digest(files),
            "files": {f"model/{name}": found for name, found in files.items()},
        },
    )


def config(makes: str, size: str, tokenizer: Any, positions: int) -> Any:
    """Returns the configuration of a model. Dropout is 0 as in T5 1.1's pre-training: it would differ between numbers of workers."""
    from transformers import BertConfig, ElectraConfig, LlamaConfig, T5Config

    layers, width = SHAPES[size]
    heads, vocabulary = max(2, width // 64), len(tokenizer)
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    if makes == "causal_lm":
        return LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=-(-width * 8 // 3 // 64) * 64, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=max(positions, 2048), tie_word_embeddings=True, **ids,
        )  # fmt: skip
    if makes == "seq2seq_lm":
        return T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=width // heads, d_ff=width * 2, num_layers=layers, num_decoder_layers=layers,
            num_heads=heads, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=True,
            decoder_start_token_id=ids["pad_token_id"], eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"],
        )  # fmt: skip
    same = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": width * 4, "max_position_embeddings": positions, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": ids["pad_token_id"],
    }  # fmt: skip
    return ElectraConfig(embedding_size=min(width, 128), **same) if makes == "discriminator" else BertConfig(**same)


if __name__ == "__main__":
    asked_for = json.loads(sys.stdin.read())
    make(Run(asked_for["path"]), asked_for)
