"""Quantises a model and measures it, in Ray tasks with a process of their own."""

from __future__ import annotations

import shutil
import time

import yaml

from lib import data
from lib.distributed.publish import publish
from lib.evals import plan as evals
from lib.evals.evaluate import evaluate
from lib.methods.compression import measure, report
from lib.methods.compression.measure import weights
from lib.methods.quantization.job import Plan, QuantizeJob, stored
from lib.models import locate
from lib.models.quantization import gptq
from lib.models.quantization.schemes import METHODS, quantize
from lib.models.quantized_formats import FORMATS
from lib.run import Run
from lib.runtime import checkpoint, provenance
from lib.runtime.isolated_task import apart


def quantised(planned: Plan, command: str) -> bool:
    """Makes the quantised model, then measures memory, speed and the tasks. Ray must be connected. An existing model isn't made
    again. Returns True: no result counts as a failure."""
    started, j, run = time.time(), planned.job, Run(planned.job.run)

    def say(text: str) -> None:
        print(f"{time.time() - started:5.0f} s  {text}", flush=True)

    if not planned.done:
        produce(planned)
        say(f"the model is in {run.at('model')}")
    prompts, needs = data.prompts(data.load(j.data, ("chat", "text"), training=False).heldout, measure.TOGETHER), {}
    for name, base in (("before", j.model.base), (j.method, run.path)):
        needs[name] = apart(run, measure.needs, base, j.chosen() == "vllm", j.dtype, prompts, j.max_new_tokens)
        say(f"{name:<10} memory and speed measured")
    scores = evaluate(evals.plan(j.evaluation()), command) if j.tasks else None
    p = run.provenance()
    found = report.Compressed(
        run.path, "quantize", j.model.base, ("before", j.method), f"Quantised in {p['seconds']['quantize']:.0f} s.", j.chosen(),
        p, p["bytes"], needs, scores, command,
    )  # fmt: skip
    report.write(found)
    report.terminal(found)
    return True


def produce(planned: Plan) -> None:
    """Makes the run: job.yaml, model/, provenance.json with status finished at the very end. Ray must be connected."""
    began, j = time.time(), planned.job
    run, kept = Run(j.run), stored(j)
    run.write_text("job.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    kind = FORMATS[METHODS[j.method].format]
    packages = ("torch", "ray", "transformers", "safetensors", *kind.distributions())
    data = planned.check.summary()
    begun = provenance.origin("quantize", kept, j.model.base, planned.spec.identity, data, packages)
    run.write_json("provenance.json", begun)
    made = apart(run, make, j)
    made["seconds"]["total"] = time.time() - began
    provenance.record(run, {"status": "finished", "failure": None, **made})


def make(job: QuantizeJob) -> dict:
    """Writes the run's model/ and returns its entries for provenance.json. Replaces a model/ that a killed process left behind."""
    import resource

    import torch

    began, run = time.time(), Run(job.run)
    if not run.is_run():
        raise ValueError(f"run: this node can't see {run.path}. On several nodes it must be s3:// or a mounted folder.")
    folder = checkpoint.scratch(run) / "export"
    shutil.rmtree(folder, ignore_errors=True)
    source = locate.snapshot(job.model.base)
    rows = gptq.calibration(job, str(source)) if METHODS[job.method].calibrated else None
    template = quantize(
        job.method, str(source), str(folder / "model"), None if job.dtype == "auto" else job.dtype, rows
    )
    made = time.time()
    sizes = {"before": weights(source), job.method: weights(folder / "model")}
    gpu = torch.cuda.is_available()
    return {
        "method": job.method,
        "bytes": sizes,
        "template_sha256": template,
        **publish(run, folder),
        "hardware": torch.cuda.get_device_name() if gpu else "cpu × 1",
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": {"quantize": made - began, "export": time.time() - made},
    }
