"""Merges models tensor by tensor, in a Ray task with a process of its own."""

from __future__ import annotations

import shutil
import time
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import yaml

from lib.distributed.publish import publish
from lib.methods.model_merging.combine import combined
from lib.methods.model_merging.job import MergeJob, Plan, evaluation, identities, stored
from lib.models import locate
from lib.run import Run
from lib.runtime import checkpoint, provenance
from lib.runtime.console import show
from lib.runtime.failure import StopTraining
from lib.runtime.isolated_task import apart


def merged(planned: Plan, command: str) -> bool:
    """Makes the run: job.yaml, model/, provenance.json with status finished at the very end. Ray must be connected."""
    began, j = time.time(), planned.job
    run, kept = Run(j.run), stored(j)
    run.write_text("job.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    packages = ("torch", "ray", "transformers", "peft", "safetensors")
    begun = provenance.origin("merge", kept, j.model.base, planned.start.identity, {}, packages)
    run.write_json("provenance.json", begun | {"merged": identities(planned.specs)})
    made = apart(run, make, j)
    provenance.record(run, {"status": "finished", "failure": None, "seconds": {"total": time.time() - began}, **made})
    names = list(j.runs)
    rows = [(n, f"changed the base's weights by {c:.2%} of their norm") for n, c in made["changed"].items()]
    rows += [
        (f"{a}, {b}", f"cosine of their changes {made['cosines'][f'{a}, {b}']:.3f}") for a, b in combinations(names, 2)
    ]
    show([*rows, ("model", f"{run.at('model')}, {made['dtype']}"), ("next", evaluation(j))], "merge: the result")
    return True


def make(job: MergeJob) -> dict:
    """Writes the run's model/ and returns its entries for provenance.json. Replaces a model/ that a killed process left behind.

    Raises StopTraining if the models' tensors or tokens differ in more than their values.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lib.models.chat_template import template_sha256

    run = Run(job.run)
    if not run.is_run():
        raise ValueError(f"run: this node can't see {run.path}. On several nodes it must be s3:// or a mounted folder.")
    folder = checkpoint.scratch(run) / "export"
    shutil.rmtree(folder, ignore_errors=True)
    sources = {name: locate.snapshot(base) for name, base in job.runs.items()}
    first = next(iter(sources))
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype="auto")  # noqa: E731
    start = dict(load(locate.snapshot(job.model.base)).named_parameters())  # tied weights once
    files = {name: _tensors(source) for name, source in sources.items()}
    for name, there in files.items():
        _same(name, {key: tuple(p.shape) for key, p in start.items()}, there, job.model.base)
    tokenizers = {name: AutoTokenizer.from_pretrained(source) for name, source in sources.items()}
    for name, tokenizer in tokenizers.items():
        if tokenizer.get_vocab() != tokenizers[first].get_vocab():
            raise StopTraining(f"runs.{name}: its tokens are not those of {first}.")
    model, tok = load(sources[first]), tokenizers[first]
    kept = model.dtype if len({t.dtype for there in files.values() for t in there.values()}) == 1 else torch.float32
    model.to(kept)
    weights, dots, norm = [job.weights[name] for name in sources], 0.0, 0.0
    for name, parameter in model.named_parameters():
        others = []
        for there in files.values():
            with safe_open(there[name].file, "pt") as file:
                others.append(file.get_tensor(name))
        before = start[name].detach()
        theta, products = combined(name, before, others, weights, job.method, job.density or 1.0, job.seed)
        parameter.data = theta.to(kept)
        dots, norm = dots + products, norm + float(before.double().square().sum())
    model.save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    size = dots.diagonal().sqrt()
    cosines = dots / (size[:, None] * size[None, :]).clamp(min=1e-300)
    names = list(sources)
    return {
        "dtype": str(kept).removeprefix("torch."),
        "template_sha256": template_sha256(tok),
        "changed": {n: float(size[i]) / norm**0.5 for i, n in enumerate(names)},
        "cosines": {f"{a}, {b}": float(cosines[names.index(a), names.index(b)]) for a, b in combinations(names, 2)},
        **publish(run, folder),
    }


class Tensor(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: str


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Returns {name: tensor} of a model's folder."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = Tensor(path, tuple(part.get_shape()), part.get_dtype())
    return found


def _same(name: str, start: dict[str, tuple[int, ...]], there: dict[str, Tensor], base: str) -> None:
    shapes = {key: tensor.shape for key, tensor in there.items()}
    wrong = sorted(key for key in start.keys() | shapes.keys() if start.get(key) != shapes.get(key))
    if wrong:
        key = wrong[0]
        raise StopTraining(
            f"runs.{name}: {len(wrong)} of its tensors are not like those of {base}, first {key}: {shapes.get(key, 'missing')} instead of "
            f"{start.get(key, 'none')}. Only models of one shape can be merged; an adapter of the embeddings and a soft prompt change it."
        )
