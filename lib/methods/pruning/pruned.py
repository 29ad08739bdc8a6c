"""Makes the pruned model that healing starts from, and keeps pruned weights at zero during healing."""

from __future__ import annotations

import hashlib
import shutil
import time

from lib.config.job import Job
from lib.methods.pruning.importance import linears, seen
from lib.methods.pruning.methods import METHODS
from lib.run import Run, cache
from lib.runtime import manifest
from lib.runtime.logs import say


def pruned(job: Job, args) -> str:
    """Returns the folder of the pruned base: the run's pruned/ (a local copy if the run is remote), made once by the first worker,
    so that a resumed job heals the same model. pruned.json, written last, records the result. Raises ValueError if the model
    can't be pruned by the method."""
    from lib.distributed.collectives import barrier, share

    run = Run(job.run)
    if share()[0] == 0:
        there = run.fs.exists(run.at("pruned.json"))
        if there and (why := manifest.damage(run, "pruned")):
            say(f"making pruned/ again: {why}")
        if not there or why:
            _make(job, args, run)
    barrier()
    if not run.remote:
        return run.at("pruned")
    folder = cache("pruned", hashlib.sha256(f"{run.path} {run.read_text('pruned.json')}".encode()).hexdigest()[:16])
    if manifest.damage(Run(str(folder.parent)), folder.name):
        shutil.rmtree(folder, ignore_errors=True)
        run.get("pruned", folder)
    return str(folder)


def _make(job: Job, args, run: Run) -> None:
    from transformers import AutoModelForCausalLM

    from lib import data
    from lib.models import load, locate
    from lib.models.encode import Encoder
    from lib.runtime import checkpoint

    began, method = time.time(), METHODS[args.method]
    folder = checkpoint.scratch(run) / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        locate.path(job.model.base), dtype="auto", revision=job.model.revision, attn_implementation="eager"
    )
    if not hasattr(model, "model") or not hasattr(model.model, "layers"):
        raise ValueError(f"model.base: a {type(model).__name__} has no model.layers, which pruning needs. Use a decoder like Llama's.")  # fmt: skip
    load.tokenizer(job.model).save_pretrained(folder)
    before, looked = sum(p.numel() for p in model.parameters()), None
    if method.reads:
        rows = data.load(job.data, ("chat", "text")).train
        encoder = Encoder(str(folder))
        rows = [_ids(encoder, rows[i])[: args.max_length] for i in range(min(args.calibration_rows, len(rows)))]
        looked = seen(model.to(args.device), rows)
    method.run(model, looked, args)
    model.save_pretrained(folder)
    weights = [m.weight.data for m in linears(model).values()]
    result = {
        "method": args.method,
        "parameters": {"before": before, "after": sum(p.numel() for p in model.parameters())},
        "zeros": sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights),
        "influence": looked.influence if looked else None,
        "seconds": time.time() - began,
    }
    manifest.seal(folder)
    run.put(folder, "pruned")
    run.write_json("pruned.json", result)
    shutil.rmtree(folder)
    size = result["parameters"]
    say(f"{args.method}: {size['before']:,} → {size['after']:,} weights, {result['zeros']:.1%} of those in linear layers are 0")  # fmt: skip


def _ids(encoder, row: dict) -> list[int]:
    return encoder.plain(row["text"]) if "text" in row else encoder.render(row["messages"], False, row.get("tools"))


def hold(model) -> None:
    """Keeps the zeros of the linear layers at 0 by masking their gradients. Adam then doesn't change them either: its moments stay
    0, and weight decay multiplies 0."""
    for module in linears(model).values():
        kept_OI = module.weight.data != 0
        module.weight.register_hook(lambda gradient, kept=kept_OI: gradient * kept)
